"""The training loop: however often it is interrupted, it ends where an undisturbed one ends."""

import itertools

import pytest
import torch
from torch import nn

from nbsupport.training.loop import DamagedFile, choose_precision, fit, read_checkpoints

EXAMPLES, EPOCHS, BATCHES = 10, 3, 3
INPUTS = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5, 3.0])[:, None]


def build():
    """A network with every kind of state: weights, running statistics, dropout's random numbers."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        norm, drop = nn.BatchNorm1d(8), nn.Dropout(0.25)
        return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), drop, nn.Linear(8, 1))


def train(scratch, network=None, *, stop=None, wrap=lambda value, batch: value, **options):
    """Weights and history; interrupted before the batch number `stop`."""
    network, count = network or build(), itertools.count()
    scratch.mkdir(exist_ok=True)

    def loss(batch, generator):
        if next(count) == stop:
            raise KeyboardInterrupt
        noise = 0.1 * torch.randn(len(batch), 4, generator=generator)
        return wrap((network(INPUTS[batch] + noise) - TARGETS[batch]).square().mean(), batch)

    defaults = dict(epochs=EPOCHS, batch_size=4, learning_rate=0.05, seed=0, label="toy")
    options = dict(examples=EXAMPLES, scratch=scratch) | defaults | options
    history = fit(network, loss, **options)
    return network.state_dict(), history


def interrupt(scratch, network=None, *, stop, **options):
    with pytest.raises(KeyboardInterrupt):
        train(scratch, network, stop=stop, **options)


def same(a, b):
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in a[0] | b[0])


@pytest.fixture
def undisturbed(tmp_path):
    return train(tmp_path / "undisturbed")


# at once, within and at the ends of epochs; again and again: across an end, epochs further, at last
STOPS = [(0,), (1,), (3,), (8,), (2, 4, 5, 1)]


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, undisturbed, stops):
    for stop in stops:
        interrupt(tmp_path, stop=stop)
        torch.manual_seed(stop)  # whatever the next session's state is
    assert same(train(tmp_path), undisturbed)
    assert same(train(tmp_path, stop=0), undisturbed)  # it is only read


def test_only_the_seed_decides_and_the_random_state_of_the_session_stays(tmp_path, undisturbed):
    before = torch.random.get_rng_state()
    assert same(train(tmp_path / "0", seed=0), undisturbed)
    assert not same(train(tmp_path / "1", seed=1), undisturbed)
    assert torch.equal(torch.random.get_rng_state(), before)


DAMAGES = {
    "emptied": lambda content: b"",
    "a bit inside": lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
}


@pytest.mark.parametrize("name", ["checkpoint.pt", "step2.pt"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_reported_and_training_restarts(tmp_path, undisturbed, damage, name):
    interrupt(tmp_path, stop=2 * BATCHES, keep=(2, 3))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.warns(DamagedFile, match=name):
        assert same(train(tmp_path, keep=(2, 3)), undisturbed)
    assert [*read_checkpoints(tmp_path)] == [2, 3]


def test_a_divergence_leaves_the_last_good_epoch(tmp_path, undisturbed):
    count, value = itertools.count(), float("nan")
    with pytest.raises(FloatingPointError, match="epoch 2"):
        train(tmp_path, wrap=lambda loss, _: value * loss if next(count) == BATCHES + 1 else loss)
    assert same(train(tmp_path), undisturbed)


@pytest.mark.parametrize("batch_size", [3, 1000])
def test_every_epoch_visits_every_example_once_in_another_order(tmp_path, batch_size):
    seen = []
    spy = dict(wrap=lambda value, batch: seen.append(batch) or value, batch_size=batch_size)
    train(tmp_path, nn.Linear(4, 1), **spy)
    epochs = torch.cat(seen).view(EPOCHS, EXAMPLES)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(EXAMPLES).expand(EPOCHS, -1))
    assert len({tuple(order) for order in epochs.tolist()}) == EPOCHS


def test_the_history_is_the_mean_over_examples(tmp_path):
    _, history = train(tmp_path, wrap=lambda value, batch: 0 * value + batch.double().mean())
    assert history == pytest.approx([4.5] * EPOCHS)  # of 0 … 9, whose last batch is smaller


def test_least_squares_is_learnt(tmp_path):
    line = nn.Linear(4, 1)
    nn.init.zeros_(line.weight)

    def loss(batch, generator):
        return (line(INPUTS[batch]) - TARGETS[batch]).square().mean()

    options = dict(examples=EXAMPLES, epochs=60, batch_size=5, learning_rate=0.3, seed=0)
    with torch.no_grad():  # as in a cell that only evaluates
        history = fit(line, loss, scratch=tmp_path, label="line", **options)
    assert history[-1] < 1e-3 * history[0]


def test_gradients_are_shortened_to_the_norm_together(tmp_path, monkeypatch):
    seen = []

    def record(self, *_, **options):
        seen.append(torch.cat([x.grad.flatten() for x in self.param_groups[0]["params"]]))

    monkeypatch.setattr(torch.optim.Adam, "step", record)  # so that weights stay equal
    train(tmp_path / "free", epochs=1)
    train(tmp_path / "clipped", epochs=1, clip_norm=0.5)
    for free, clipped in zip(seen[:BATCHES], seen[BATCHES:], strict=True):
        assert free.norm() > 1
        torch.testing.assert_close(clipped, free * 0.5 / free.norm(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("able", ["amx_bf16", "avx2"])
def test_layers_use_bfloat16_if_wanted_and_possible(wanted, able, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True}, raising=False)
    used = wanted if able == "amx_bf16" else "float32"
    assert choose_precision(wanted, torch.device("cpu")) == used
    seen, network = set(), nn.Linear(4, 1)
    network.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    train(tmp_path, network, precision=wanted)
    assert seen == {getattr(torch, used)}
    assert network.weight.dtype == torch.float32
