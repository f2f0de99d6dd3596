"""The training loop: however often it is interrupted, it ends where an undisturbed one ends."""

import itertools

import pytest
import torch
from torch import nn

from nbsupport.experiments.store import CorruptArtefact
from nbsupport.training.loop import fit

EXAMPLES, EPOCHS, BATCHES = 10, 3, 3
INPUTS = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5, 3.0])[:, None]


class Interrupted(BaseException):
    """As KeyboardInterrupt, which nothing but the test catches."""


def network():
    """Everything that has a state: weights, running statistics, and dropout's random numbers."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 1)
        )


def train(scratch, trained=None, *, stop=None, wrap=lambda value, batch: value, **options):
    """Weights and history; interrupted before the batch number `stop`."""
    trained, count = trained or network(), itertools.count()

    def loss(batch, generator):
        if next(count) == stop:
            raise Interrupted
        noise = 0.1 * torch.randn(len(batch), 4, generator=generator)
        return wrap((trained(INPUTS[batch] + noise) - TARGETS[batch]).square().mean(), batch)

    options = (
        dict(
            examples=EXAMPLES, epochs=EPOCHS, batch_size=4, learning_rate=0.05, seed=0, label="toy"
        )
        | options
    )
    history = fit(trained, loss, scratch=scratch, **options)
    return trained.state_dict(), history


def same(a, b):
    return (
        a[1] == b[1]
        and a[0].keys() == b[0].keys()
        and all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    )


@pytest.fixture
def undisturbed(tmp_path):
    (tmp_path / "undisturbed").mkdir()
    return train(tmp_path / "undisturbed")


@pytest.mark.parametrize("stop", range(EPOCHS * BATCHES))
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, undisturbed, stop):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=stop)
    torch.manual_seed(stop)  # whatever the next session's state is
    assert same(train(tmp_path), undisturbed)


def test_interrupted_again_and_again_equals_undisturbed(tmp_path, undisturbed):
    for stop in (
        2,
        4,
        5,
        1,
    ):  # in the first epoch, across its end, two epochs further, in the last one
        with pytest.raises(Interrupted):
            train(tmp_path, stop=stop)
    assert same(train(tmp_path), undisturbed)


def test_a_finished_training_is_read_and_not_repeated(tmp_path):
    finished = train(tmp_path)
    assert same(train(tmp_path, stop=0), finished)


def test_equal_seeds_train_equally_and_others_do_not(tmp_path, undisturbed):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
    assert same(train(tmp_path / "0", seed=0), undisturbed)
    assert not same(train(tmp_path / "1", seed=1), undisturbed)


def test_training_leaves_the_random_state_of_the_session(tmp_path):
    before = torch.random.get_rng_state()
    train(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "first bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_training_starts_again(tmp_path, undisturbed, damage):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=2 * BATCHES)
    (checkpoint,) = tmp_path.glob("checkpoint*")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.warns(CorruptArtefact, match="starting this training again"):
        assert same(train(tmp_path), undisturbed)


def test_an_altered_weight_in_a_checkpoint_is_noticed(tmp_path, undisturbed):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=2 * BATCHES)
    (checkpoint,) = tmp_path.glob("checkpoint*")
    content = checkpoint.read_bytes()
    trained = network()
    with pytest.raises(Interrupted):
        train(tmp_path, trained, stop=0)  # reads the checkpoint
    place = content.index(trained[0].weight.detach().numpy().tobytes())
    checkpoint.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.warns(CorruptArtefact):
        assert same(train(tmp_path), undisturbed)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_every_epoch_visits_every_example_once_in_an_order_of_its_own(tmp_path, batch_size):
    seen = []
    train(
        tmp_path,
        nn.Linear(4, 1),
        wrap=lambda value, batch: seen.append(batch) or value,
        batch_size=batch_size,
    )
    epochs = torch.cat(seen).view(EPOCHS, EXAMPLES)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(EXAMPLES).expand(EPOCHS, -1))
    assert len({tuple(order) for order in epochs.tolist()}) == EPOCHS


def test_the_history_is_the_mean_over_examples(tmp_path):
    _, history = train(tmp_path, wrap=lambda value, batch: 0 * value + batch.double().mean())
    assert history == pytest.approx([4.5] * EPOCHS)  # of 0 … 9, whose last batch is smaller


def test_a_batch_may_be_larger_than_all_examples(tmp_path):
    seen = []
    _, history = train(
        tmp_path, wrap=lambda value, batch: seen.append(len(batch)) or value, batch_size=1000
    )
    assert seen == [EXAMPLES] * EPOCHS
    assert len(history) == EPOCHS


def test_frozen_parameters_stay(tmp_path):
    trained, before = network(), network().state_dict()
    trained[0].requires_grad_(False)
    after, _ = train(tmp_path, trained)
    stayed = {
        name for name, _ in trained.named_parameters() if torch.equal(after[name], before[name])
    }
    assert stayed == {"0.weight", "0.bias"}


def test_a_frozen_part_stays_frozen_when_resumed(tmp_path):
    def frozen():
        trained = network()
        trained[0].requires_grad_(False)
        return trained

    with pytest.raises(Interrupted):
        train(tmp_path, frozen(), stop=BATCHES)
    after, _ = train(tmp_path, frozen())
    assert torch.equal(after["0.weight"], network().state_dict()["0.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(tmp_path, value):
    with pytest.raises(
        FloatingPointError, match=r"toy: the loss is .* in epoch 1; lower the learning rate"
    ):
        train(tmp_path, wrap=lambda loss, batch: loss + value)
    assert not list(tmp_path.iterdir())


def test_a_divergence_leaves_the_last_good_epoch(tmp_path, undisturbed):
    count = itertools.count()
    with pytest.raises(FloatingPointError, match="epoch 2"):
        train(tmp_path, wrap=lambda loss, batch: loss / (next(count) != BATCHES + 1))
    assert same(train(tmp_path), undisturbed)


def test_least_squares_is_learnt(tmp_path):
    line = nn.Linear(4, 1)
    nn.init.zeros_(line.weight)

    def loss(batch, generator):
        return (line(INPUTS[batch]) - TARGETS[batch]).square().mean()

    options = dict(examples=EXAMPLES, epochs=60, batch_size=5, learning_rate=0.3, seed=0)
    history = fit(line, loss, scratch=tmp_path, label="line", **options)
    assert history[-1] < 1e-3 * history[0]
    torch.testing.assert_close(
        line.weight, torch.tensor([[1.0, -2.0, 0.5, 3.0]]), atol=0.05, rtol=0
    )


# -- clipped gradients ---------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """The gradient in each of Adam's steps."""
    seen, honest = [], torch.optim.Adam.step

    def step(self, *arguments, **options):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        seen.append([parameter.grad.clone() for parameter in parameters])
        return honest(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return seen


def norms(steps):
    return [float(torch.cat([gradient.flatten() for gradient in step]).norm()) for step in steps]


def test_gradients_are_shortened_to_the_norm_together(tmp_path, steps):
    for name in ("free", "clipped"):
        (tmp_path / name).mkdir()
    train(tmp_path / "free", epochs=1)
    free = list(steps)
    steps.clear()
    train(tmp_path / "clipped", epochs=1, clip_norm=0.5)
    assert norms(free)[0] > 1
    assert max(norms(steps)) <= 0.5 + 1e-4
    for shortened, gradient in zip(
        steps[0], free[0], strict=True
    ):  # of equal weights, in the first step
        torch.testing.assert_close(shortened, gradient * 0.5 / norms(free)[0], rtol=1e-4, atol=1e-7)


def test_shorter_gradients_stay(tmp_path, steps):
    for name in ("free", "clipped"):
        (tmp_path / name).mkdir()
    undisturbed = train(tmp_path / "free")
    assert same(train(tmp_path / "clipped", clip_norm=1e6), undisturbed)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_clipped_training_resumes_too(tmp_path, stop):
    for name in ("undisturbed", "interrupted"):
        (tmp_path / name).mkdir()
    undisturbed = train(tmp_path / "undisturbed", clip_norm=0.1)
    with pytest.raises(Interrupted):
        train(tmp_path / "interrupted", stop=stop, clip_norm=0.1)
    assert same(train(tmp_path / "interrupted", clip_norm=0.1), undisturbed)
