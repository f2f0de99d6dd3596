"""The claims as predicates on crafted curves, their judgement on crafted images, and the paper's own outcomes."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from nbsupport.experiments.evaluation import Evaluation
from nbsupport.experiments.measurement import Measurement
from nbsupport.experiments.methods import COMBINATIONS, TABLES
from nbsupport.results import claims
from nbsupport.results.claims import OVER_STEPS, judge, per_image
from nbsupport.results.predicates import CLAIMS, CORE_CLAIMS, ROBUST_CLAIMS, Curves
from nbsupport.results.tables import published
from nbsupport.study import EPS, STRONG_EPS, Study

S, M, L = EPS[:3], EPS[3:7], EPS[7:12]  # the paper's regions, as its text names them
MIDDLE = EPS[4:9]  # where C6 expects Filt(L_img*) ahead
FOUR = [f"{kind}({loss})" for kind in ("Add", "Filt") for loss in ("L_sem", "L_img")]
QUALITY = [(metric, method) for metric in ("psnr", "ssim") for method in FOUR]
SL, M_PART, FUSED = "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m", "PA-Filt(L_img)"


def within(strengths):
    return np.isin(EPS, list(strengths))


REGIONS = {"S": within(S), "M": within(M), "L": within(L), "C6": within(MIDDLE)}
NO_MIDDLE = REGIONS | {"M": within([]), "C6": within([])}


def curve(level=0.5, **changes):
    """A flat curve but for `changes`: ``up`` or ``down`` says at which strengths it is .1 higher or lower."""
    values = np.full(len(EPS), level)
    for name, strengths in changes.items():
        values = values + within(strengths) * {"up": 0.1, "down": -0.1}[name]
    return values


def curves(given, regions=REGIONS):
    """Curves from a method (its accuracy) or a (metric, method) to numbers."""
    numbers = named(given)
    return Curves(lambda metric, method: numbers[metric, method], regions)


def named(given):
    return {
        key if isinstance(key, tuple) else ("accuracy", key): np.asarray(v, float)
        for key, v in given.items()
    }


def flat(*names, level=0.5):
    return {name: curve(level) for name in names}


def put(given, which, values):
    return given | {which: values}


# What each claim says of: curves for which it just holds, and what may not change in them.
C1 = flat("attacked", *FOUR) | {"Filt(L_img)": curve(up=EPS[:8]), "Filt(L_sem)": curve(up=EPS[5:])}
C2 = {"attacked": curve(), "Filt(L_img)": curve(up=EPS[:1], down=EPS[1:])}
C3 = {"Filt(L_sem)": curve(), "Filt(L_img)": curve(up=S + L, down=M)}
C4 = flat("attacked") | {which: curve(up=EPS if "Filt" in which[1] else ()) for which in QUALITY}
C5 = flat("attacked") | {
    which: curve(up=EPS if which[1] == "Filt(L_img)" else ()) for which in QUALITY
}
C6 = flat(*FOUR) | {"Filt(L_img*)": curve(up=MIDDLE, down=S)}
C7 = flat("head_1", "head_2") | {"head_3": curve(down=EPS[6:]), "head_4": curve(down=EPS[:6])}
C8 = {"Filt(L_img*)": curve(0.5), "head_4": curve(0.52)}
C9 = {"Filt(L_img)": curve(), FUSED: curve(up=M, down=S + L)}
C10 = {SL: curve(down=L), M_PART: curve(down=S), FUSED: curve()}
C11 = {"attacked": curve(), SL: curve(up=EPS[:1]), M_PART: curve(down=EPS[:1])}
C12 = {("spearman", "Filt(L_img)"): [0.9]}
C13 = {("kernel_distance", SL): np.where(within([0.1]), 5.0, 1.0)}
C14 = {"Adv": curve(), "Filt+Adv": np.where(within(STRONG_EPS), 0.501, 0.489)}
C15 = {
    (OVER_STEPS, "Adv"): [0.5, 0.4, 0.3, 0.2, 0.1],
    (OVER_STEPS, "Filt+Adv"): [0.51, 0.41, 0.31, 0.21, 0.11],
}
C16 = {
    "FPD": curve(),
    "Add+FPD": curve(up=EPS[10:], down=EPS[:10]),
    "Filt+FPD": curve(up=EPS[10:], down=EPS[:10]),
}
C17 = {
    "FD": curve(),
    "Add+FD": curve(up=EPS[11:], down=EPS[:11]),
    "Filt+FD": curve(up=EPS[11:], down=EPS[:11]),
}
C18 = {"attacked": [0.9, 0.9, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0]}

HOLDS = {
    **dict(
        C1=C1,
        C2=C2,
        C3=C3,
        C4=C4,
        C5=C5,
        C6=C6,
        C7=C7,
        C8=C8,
        C9=C9,
        C10=C10,
        C11=C11,
        C12=C12,
        C13=C13,
    ),
    **dict(C14=C14, C15=C15, C16=C16, C17=C17, C18=C18),
}
FAILS = {
    "C1: seven columns for the image loss": put(C1, "Filt(L_img)", curve(up=EPS[:7])),
    "C1: seven columns for the semantic loss": put(C1, "Filt(L_sem)", curve(up=EPS[6:])),
    "C2: as good as before": put(C2, "Filt(L_img)", curve(up=EPS[1:])),
    "C3: equal on S": put(C3, "Filt(L_img)", curve(up=L, down=M)),
    "C3: equal on M": put(C3, "Filt(L_img)", curve(up=S + L)),
    "C3: equal on L": put(C3, "Filt(L_img)", curve(up=S, down=M)),
    "C3: equal on average over S, in another order": {
        "Filt(L_sem)": [0.7, 0.1, 0.3, *[0.5] * 10],
        "Filt(L_img)": [0.1, 0.3, 0.7, *[0.4] * 4, *[0.6] * 6],
    },
    **{f"C4: equal in one column, {which}": put(C4, which, curve(up=EPS[:-1])) for which in QUALITY if "F" in which[1]},
    **{f"C5: equal in one column, {which}": put(C5, which, curve(up=EPS[1:])) for which in QUALITY[3::4]},
    **{f"C5: {which} is as good in one": put(C5, which, curve(up=EPS[:1])) for which in [*QUALITY[:3], *QUALITY[4:7]]},
    "C6: equal in one middle column": put(C6, "Filt(L_img*)", curve(up=MIDDLE[1:], down=S)),
    "C6: equal in one column of S": put(C6, "Filt(L_img*)", curve(up=MIDDLE, down=S[1:])),
    "C6: one of the four is as good": put(C6, "Add(L_sem)", curve(up=MIDDLE[:1])),
    "C7: an early head is ahead in one column": put(C7, "head_2", curve(up=EPS[4:5])),
    "C8: too far above": put(C8, "head_4", curve(0.521)),
    "C8: too far below in one column": put(C8, "head_4", np.where(within([0.1]), 0.479, 0.5)),
    "C9: equal in one column of M": put(C9, FUSED, curve(up=M[:-1])),
    "C10: one part is ahead in one column": put(C10, SL, curve(up=EPS[2:3])),
    "C10: so is the other": put(C10, M_PART, curve(up=EPS[-1:])),
    "C11: sl is no better": put(C11, SL, curve(up=EPS[1:])),
    "C11: m is no worse": put(C11, M_PART, curve(down=EPS[1:])),
    "C12: too weak": {("spearman", "Filt(L_img)"): [0.899]},
    "C13: too near": {("kernel_distance", SL): np.where(within([0.1]), 4.99, 1.0)},
    "C13: far elsewhere": {("kernel_distance", SL): np.where(within([0.1, 1e-4]), 1.0, 9.0)},
    **{
        f"C14: equal at {eps}": put(C14, "Filt+Adv", np.where(within(set(STRONG_EPS) - {eps}), 0.501, 0.5))
        for eps in STRONG_EPS
    },
    **{f"C14: {eps} is lost": put(C14, "Filt+Adv", C14["Filt+Adv"] - 0.001 * within([eps])) for eps in EPS[:10]},
    **{
        f"C15: equal at the n number {at}": put(
            C15, (OVER_STEPS, "Filt+Adv"), np.array(C15[OVER_STEPS, "Filt+Adv"]) - 0.01 * (np.arange(5) == at)
        )
        for at in range(5)
    },
    **{
        f"C16: {name} is equal at {eps}": put(C16, f"{name}+FPD", curve(up=set(EPS[10:]) - {eps}))
        for name in ("Add", "Filt")
        for eps in EPS[10:]
    },
    **{
        f"C17: {name} is equal at {eps}": put(C17, f"{name}+FD", curve(up=set(EPS[11:]) - {eps}))
        for name in ("Add", "Filt")
        for eps in EPS[11:]
    },
    "C18: rises once": put(C18, "attacked", [*C18["attacked"][:9], 0.11, 0.1, 0.0, 0.0]),
    "C18: stays above 0": put(C18, "attacked", [*C18["attacked"][:11], 0.001, 0.001]),
}  # fmt: skip


def verdict(claim, given, regions=REGIONS):
    return CLAIMS[claim][1](curves(given, regions))[0]


@pytest.mark.parametrize(("claim", "given"), HOLDS.items(), ids=HOLDS)
def test_a_claim_holds_where_it_just_does(claim, given):
    assert verdict(claim, given)


@pytest.mark.parametrize(("case", "given"), FAILS.items(), ids=FAILS)
def test_and_fails_where_it_just_does_not(case, given):
    assert not verdict(case.split(":")[0], given)


@pytest.mark.parametrize("claim", ["C3", "C6", "C9"])
def test_without_middle_strengths_there_is_nothing_to_win(claim):
    assert not verdict(claim, HOLDS[claim], NO_MIDDLE)


@pytest.mark.parametrize(("of_500", "holds"), [(0, True), (10, True), (11, False)])
def test_within_two_hundredths_includes_two_hundredths(of_500, holds):
    counts = np.arange(13, 500 - 11, 35)[
        :13
    ]  # differences of such accuracies are seldom exact in floating point
    assert verdict("C8", {"Filt(L_img*)": counts / 500, "head_4": (counts + of_500) / 500}) == holds


def test_all_claims_are_there():
    assert list(CLAIMS) == [f"C{number}" for number in range(1, 19)]
    assert set(HOLDS) == {case.split(":")[0] for case in FAILS} == set(CLAIMS)


def test_the_core_claims_need_no_robust_classifier():
    assert list(CORE_CLAIMS) == [*(f"C{number}" for number in range(1, 14)), "C18"]
    assert dict(ROBUST_CLAIMS) == {"C14": 5, "C15": 5, "C16": 6, "C17": 7}
    for claim in CORE_CLAIMS:
        CLAIMS[claim][1](curves(HOLDS[claim]))  # whose curves are of the standard classifier alone
        assert all(which[-1] not in COMBINATIONS for which in named(HOLDS[claim]))


@pytest.mark.parametrize(("claim", "table"), ROBUST_CLAIMS.items())
def test_a_robust_claim_is_about_methods_of_its_table(claim, table):
    assert {method for _, method in named(HOLDS[claim])} <= set(TABLES[table])


def test_without_all_strong_attacks_c14_has_nothing_to_say():
    gain = [0.6, 0.6, 0.6]
    given = {"Adv": np.zeros(3), "Filt+Adv": np.array(gain)}
    assert not CLAIMS["C14"][1](Curves(lambda metric, method: given[method], {}, (0.0, 0.1, 0.3)))[
        0
    ]


@pytest.mark.parametrize("claim", ["C16", "C17"])
def test_without_strengths_above_there_is_nothing_to_win(claim):
    given = {method: values[:10] for method, values in HOLDS[claim].items()}
    assert not CLAIMS[claim][1](Curves(lambda metric, method: given[method], {}, EPS[:10]))[0]


def test_exactly_11_thousandths_may_be_lost():
    counts = np.arange(60, 580, 40)
    filtered = counts + np.where(within(STRONG_EPS), 1, -11)
    assert verdict("C14", {"Adv": counts / 1000, "Filt+Adv": filtered / 1000})
    filtered[3] -= 1
    assert not verdict("C14", {"Adv": counts / 1000, "Filt+Adv": filtered / 1000})


# -- judged on images ----------------------------------------------------------------------------


class Crafted(Evaluation):
    """An evaluation of given results: which images each method gets right, (strengths, images).

    ``over_steps`` has those at another n, ``own`` those of a classifier which is itself attacked.
    """

    def __init__(
        self, correct=None, *, failures=None, seed=0, eps=EPS, over_steps=None, own=None, **measured
    ):
        correct, self.over_steps = correct or {}, over_steps or {}
        self.attacked_itself = {"standard": np.zeros((13, 1)), **(own or {})}
        number = next(np.shape(values)[1] for values in [*correct.values(), *measured.values()])
        self.study = Study.named("digits", "smoke", test_images=number, seed=seed, eps=eps)
        self.artefacts = SimpleNamespace(failure=(failures or {}).get)
        self.given, self.measured, self.shape = correct, measured, (len(eps), number)

    def own(self, classifier):
        return self.attacked_itself.get(classifier, np.ones((13, 1)))

    def measurement(self, method, steps=None, eps=None, target="standard"):
        if steps is not None:
            assert (eps, target) == ((self.study.sweep_eps,), "standard")
            curve = np.stack([np.zeros(self.shape[1]), self.over_steps[method][steps]])
            return SimpleNamespace(correct=lambda: curve.astype(bool))
        right = torch.tensor(
            np.asarray(self.given.get(method, np.ones(self.shape))), dtype=torch.long
        )
        values = {name: torch.zeros(right.shape) for name in ("psnr", "ssim", "change")}
        given = {
            name: torch.as_tensor(np.asarray(v), dtype=torch.float32)
            for name, v in self.measured.items()
        }
        values |= {name: given.pop(name) for name in values.keys() & given.keys()}
        return Measurement(
            right, torch.ones(self.shape[1], dtype=torch.long), extra=given, **values
        )


def right(number, of=40):
    """The first `number` images are right, at every strength."""
    return np.tile(np.arange(of) < number, (13, 1))


def judged(evaluation, claim, **options):
    return judge(evaluation, claim, **options).iloc[0]


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [(20, 40, "holds"), (20, 20, "fails"), (20, 10, "fails"), (20, 21, "inconclusive")],
)
def test_outcomes(before, after, outcome):
    row = judged(Crafted({"attacked": right(before), "Filt(L_img)": right(after)}), "C2")
    assert row["outcome"] == outcome
    assert row["measured"] == f"{before / 40:.3f} → {after / 40:.3f}"


@pytest.mark.parametrize(
    ("times", "outcome"),
    [
        (200, "holds"),
        (195, "holds"),
        (194, "inconclusive"),
        (6, "inconclusive"),
        (5, "fails"),
        (0, "fails"),
    ],
)
def test_the_outcome_follows_from_the_share_of_resamples(times, outcome, monkeypatch):
    verdicts = iter(
        [True, *[True] * times, *[False] * (200 - times), False]
    )  # all images, resamples, paper
    monkeypatch.setitem(CLAIMS, "C2", ("crafted", lambda curves: (next(verdicts), "text")))
    row = judged(Crafted({"attacked": right(20)}), "C2", resamples=200)
    assert (row["support"], row["outcome"], row["paper_outcome"]) == (times / 200, outcome, "fails")


def test_methods_are_compared_on_the_same_images():
    # one image more is right: a resample without it shows no gain, one with it does
    row = judged(Crafted({"attacked": right(20), "Filt(L_img)": right(21)}), "C2", resamples=4000)
    assert row["support"] == pytest.approx(1 - (1 - 1 / 40) ** 40, abs=0.03)


def test_ties_are_ties_and_no_rounding_decides():
    correct = np.zeros((13, 30), dtype=bool)
    correct[0], correct[1:7, :10], correct[7:12, 10:20] = (
        True,
        True,
        True,
    )  # never more right, but for luck
    weights = np.random.default_rng(5).multinomial(30, [1 / 30] * 30, 2000)
    counts = weights @ correct.T  # whole numbers
    expected = ((np.diff(counts, axis=1) <= 0).all(axis=1) & (counts[:, -1] == 0)).mean()
    assert 0 < expected < 1
    assert judged(Crafted({"attacked": correct}, seed=5), "C18")["support"] == expected


def test_the_same_seed_judges_the_same():
    correct = {"attacked": right(20), "Filt(L_img)": right(21)}
    first, again, other = (judge(Crafted(correct, seed=seed), "C2") for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert first["support"][0] != other["support"][0]


def test_a_failed_training_is_not_measured_and_says_why():
    evaluation = Crafted({"attacked": right(20)}, failures={FUSED: "its W is the same everywhere"})
    row = judged(evaluation, "C10")
    assert (row["outcome"], row["measured"]) == ("not measured", "its W is the same everywhere")
    assert np.isnan(row["support"])
    assert (row["paper_outcome"], row["in_the_paper"][:18]) == ("fails", "in 3 of 13 columns")


def test_a_classifier_that_is_not_robust_is_not_measured_and_says_why():
    own = {"Adv": np.zeros((13, 1))}
    row = judged(Crafted({"Adv": right(20), "Filt+Adv": right(30)}, own=own), "C14")
    assert row["outcome"] == "not measured"
    assert row["measured"].startswith(
        "Adv: training failed. This classifier is no more robust than the standard one"
    )
    assert row["paper_outcome"] == "holds"


@pytest.mark.parametrize(("after", "outcome"), [(40, "holds"), (20, "fails"), (21, "inconclusive")])
def test_c14_and_c16_and_c17_are_judged_on_images(after, outcome):
    correct = {method: right(after if "+" in method else 20) for method in COMBINATIONS}
    rows = judge(Crafted(correct), "C14", "C16", "C17")
    assert set(rows["outcome"]) == {outcome}


@pytest.mark.parametrize(("after", "outcome"), [(40, "holds"), (20, "fails"), (21, "inconclusive")])
def test_c15_is_judged_over_the_steps_of_the_study(after, outcome):
    few, many = Study.named("digits", "smoke").sweep_steps
    over_steps = {
        "Adv": {n: right(20)[0] for n in (few, many)},
        "Filt+Adv": {few: right(40)[0], many: right(after)[0]},
    }
    row = judged(Crafted({"attacked": right(20)}, over_steps=over_steps), "C15")
    assert row["outcome"] == outcome
    assert row["measured"] == f"gain {(after - 20) / 40:+.3f} … +0.500"


@pytest.mark.parametrize("claim", ["C0", "C19", "c1"])
def test_an_unknown_claim_is_refused(claim):
    with pytest.raises(KeyError, match=claim):
        judge(Crafted({"attacked": right(20)}), claim)


def test_all_claims_are_judged_where_none_is_named(artefacts):
    rows = judge(Evaluation(artefacts), resamples=20)
    assert list(rows["claim"]) == list(CLAIMS)
    assert list(rows["predicate"]) == [sentence for sentence, _ in CLAIMS.values()]
    assert list(rows)[2:] == ["measured", "support", "outcome", "in_the_paper", "paper_outcome"]
    assert set(rows["outcome"]) <= {"holds", "fails", "inconclusive", "not measured"}


def test_named_claims_come_in_their_order():
    rows = judge(Crafted({"attacked": right(20)}), "C18", "C2")
    assert list(rows["claim"]) == ["C18", "C2"]


def test_a_study_of_other_strengths_is_judged_at_its_own():
    evaluation = Crafted(kernel_distance=[[1.0] * 4, [1.0] * 4, [5.0] * 4], eps=(0.0, 1e-4, 0.1))
    assert judged(evaluation, "C13")["outcome"] == "holds"


# -- regions -------------------------------------------------------------------------------------


def regions_of(counts, of, monkeypatch):
    """What a predicate sees as S, M, L and C6 when `counts` of `of` attacked images are right."""
    seen = []
    monkeypatch.setitem(
        CLAIMS, "C2", ("", lambda curves: (seen.append(curves.regions) or True, ""))
    )
    attacked = np.array([np.arange(of) < count for count in counts])
    judge(Crafted({"attacked": attacked}), "C2", resamples=1)
    assert all(seen[0][name].tolist() == seen[1][name].tolist() for name in seen[0])
    return {name: "".join("x" if here else "." for here in mask) for name, mask in seen[0].items()}


def test_regions_follow_the_attacked_curve(monkeypatch):
    counts = [90, 80, 73, 71, 50, 20, 10, 3, 2, 1, 0, 0, 0]
    middle = "...xxxxx....."
    expected = {"S": "xxx..........", "M": middle, "L": "........xxxxx", "C6": middle}
    assert regions_of(counts, 100, monkeypatch) == expected


@pytest.mark.parametrize(("clean", "of"), [(20, 24), (25, 500), (495, 500), (50, 500)])
def test_exactly_80_percent_of_clean_accuracy_is_small(clean, of, monkeypatch):
    kept = clean * 4 // 5
    assert regions_of([clean, kept, kept - 1, *[0] * 10], of, monkeypatch)["S"] == "xx..........."


def test_the_papers_regions_are_those_it_names():
    masks = claims._paper_curves().regions
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        name: mask.tolist() for name, mask in REGIONS.items()
    }


# -- per image -----------------------------------------------------------------------------------


def test_accuracy_is_1_or_0_per_image():
    assert (
        per_image(Crafted({"attacked": right(3, of=5)}), "accuracy", "attacked").tolist()
        == [[1, 1, 1, 0, 0]] * 13
    )


def test_infinite_psnr_counts_as_200_db():
    psnr = np.full((13, 2), 30.0)
    psnr[0, 0] = np.inf
    assert per_image(Crafted(psnr=psnr), "psnr", "attacked")[0].tolist() == [200, 30]


@pytest.mark.parametrize("metric", ["ssim", "kernel_distance"])
def test_other_metrics_are_as_measured(metric):
    values = np.random.default_rng(0).random((13, 4))
    np.testing.assert_allclose(
        per_image(Crafted(**{metric: values}), metric, "Filt(L_img)"), values, rtol=1e-6
    )


def test_spearman_is_scipys_per_image():
    uncertainty = np.random.default_rng(0).integers(0, 9, (13, 20)).astype(float)  # with ties
    uncertainty[:, :2] = np.array([EPS, EPS]).T * [1, -1]
    expected = [abs(spearmanr(EPS, image).statistic) for image in uncertainty.T]
    found = per_image(Crafted(uncertainty=uncertainty), "spearman", "Filt(L_img)")
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_what_stays_constant_follows_nothing():
    assert per_image(Crafted(uncertainty=np.ones((13, 2))), "spearman", "Filt(L_img)").tolist() == [
        [0, 0]
    ]


def test_a_method_without_the_metric_is_a_key_error():
    with pytest.raises(KeyError, match="kernel_distance"):
        per_image(Crafted(uncertainty=np.ones((13, 2))), "kernel_distance", "Add(L_img)")


# -- in the paper --------------------------------------------------------------------------------

GROUPS = [
    ("resnet50", "neurips2017dev"),
    ("vgg16", "neurips2017dev"),
    ("resnet50", "cifar10"),
    ("resnet50", "svhn"),
]


def printed(threat_model, data):
    """The curves of one group of Table 1, read anew."""
    numbers = published(threat_model, data)
    numbers = numbers[(numbers["table"] == 1)].sort_values("eps")
    return curves({method: group["value"] for method, group in numbers.groupby("method")})


def in_the_paper(claim):
    row = judged(Crafted({"attacked": right(20)}), claim, resamples=1)
    return row["paper_outcome"], row["in_the_paper"]


@pytest.mark.parametrize(
    ("claim", "outcome", "text"),
    [
        ("C1", "holds", "L_img: 13 of 13, L_sem: 12 of 13"),
        ("C2", "holds", "0.913 → 0.928"),
        ("C3", "holds", "S: +0.010, M: -0.030, L: +0.058"),
        ("C4", "fails", "psnr L_img: 13, ssim L_img: 13, psnr L_sem: 5, ssim L_sem: 5"),
        ("C5", "fails", "psnr: 12, ssim: 13"),
        ("C6", "holds", "over the best of the four: middle +0.209 … +0.609, S -0.137 … -0.046"),
        ("C7", "holds", "in 13 of 13 columns"),
        ("C8", "holds", "largest difference 0.005"),
        ("C9", "holds", "gain +0.104 … +0.284"),
        ("C10", "fails", "in 3 of 13 columns; mean 0.408; sl 0.350, m 0.489, the better 0.498"),
        ("C11", "holds", "none 0.913, sl 0.934, m 0.875"),
        ("C12", "not measurable", "a figure without numbers"),
        ("C13", "not measurable", "a figure without numbers"),
        ("C14", "holds", "at the three strong ε +0.032 … +0.307, elsewhere -0.011 … +0.003"),
        ("C15", "holds", "gain +0.279 … +0.320"),
        ("C16", "holds", "Add+FPD +0.135 … +0.243, Filt+FPD +0.010 … +0.038"),
        ("C17", "holds", "Add+FD +0.158 … +0.196, Filt+FD +0.265 … +0.511"),
        ("C18", "holds", "rises 0 times, ends at 0.000"),
    ],
)
def test_the_papers_own_outcomes(claim, outcome, text):
    assert in_the_paper(claim) == (outcome, text)


def groups_where(claim):
    return [number for number, group in enumerate(GROUPS) if CLAIMS[claim][1](printed(*group))[0]]


def test_filt_beats_add_in_7_of_the_papers_8_rows():
    texts = [CLAIMS["C1"][1](printed(*group))[1] for group in GROUPS]
    assert (
        sum(int(columns) >= 8 for text in texts for columns in re.findall(r"(\d+) of 13", text))
        == 7
    )


def test_clean_accuracy_rises_in_1_of_its_4_groups():
    assert groups_where("C2") == [0]


def test_the_image_loss_has_its_pattern_on_dev_and_not_on_svhn():
    assert 0 in groups_where("C3")
    assert 3 not in groups_where("C3")


def test_the_attacked_row_falls_to_0_on_dev_and_rises_on_cifar_and_svhn():
    assert groups_where("C18") == [0, 1]
