"""Claims on crafted curves, their judgement on crafted images, and the paper's outcomes."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from nbsupport.experiments.artifacts import Experiment
from nbsupport.results import claims
from nbsupport.results.claims import (
    CLAIMS,
    OVER_STEPS,
    Above,
    Curves,
    check,
    judge,
    paper_curves,
    per_image,
)
from nbsupport.study import EPS, STRONG_EPS, Study

S, M, L = EPS[:3], EPS[3:7], EPS[7:12]  # the paper's regions, as its text names them
MIDDLE = EPS[4:9]  # where C6 expects Filt(L_img*) ahead
FOUR = [f"{kind}({loss})" for kind in ("Add", "Filt") for loss in ("L_sem", "L_img")]
QUALITY = [(metric, method) for metric in ("psnr", "ssim") for method in FOUR]
SL, M_PART, FUSED = "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m", "PA-Filt(L_img)"


def within(strengths):
    return np.isin(EPS, list(strengths))


REGIONS = {"S": within(S), "M": within(M), "L": within(L), "C6": within(MIDDLE)}


def curve(level=0.5, **changes):
    """A flat curve, but .1 higher at the strengths ``up`` and .1 lower at those ``down``."""
    values = np.full(len(EPS), level)
    for name, strengths in changes.items():
        values = values + within(strengths) * {"up": 0.1, "down": -0.1}[name]
    return values


def curves(given, regions=REGIONS, eps=EPS):
    """Curves from a method (its accuracy) or a (metric, method) to numbers."""
    numbers = {key: np.asarray(values, float) for key, values in given.items()}
    return Curves(
        lambda metric, method: numbers[method if metric == "accuracy" else (metric, method)],
        regions,
        eps,
    )


def flat(*names, level=0.5):
    return {name: curve(level) for name in names}


# Curves for which each claim just holds.
HOLDS = {
    "C1": flat("attacked", *FOUR)
    | {"Filt(L_img)": curve(up=EPS[:8]), "Filt(L_sem)": curve(up=EPS[5:])},
    "C2": {"attacked": curve(), "Filt(L_img)": curve(up=EPS[:1], down=EPS[1:])},
    "C3": {"Filt(L_sem)": curve(), "Filt(L_img)": curve(up=S + L, down=M)},
    "C4": flat("attacked")
    | {which: curve(up=EPS if "Filt" in which[1] else ()) for which in QUALITY},
    "C5": flat("attacked")
    | {which: curve(up=EPS if which[1] == "Filt(L_img)" else ()) for which in QUALITY},
    "C6": flat(*FOUR) | {"Filt(L_img*)": curve(up=MIDDLE, down=S)},
    "C7": flat("head_1", "head_2") | {"head_3": curve(down=EPS[6:]), "head_4": curve(down=EPS[:6])},
    "C8": {"Filt(L_img*)": curve(0.5), "head_4": curve(0.52)},
    "C9": {"Filt(L_img)": curve(), FUSED: curve(up=M, down=S + L)},
    "C10": {SL: curve(down=L), M_PART: curve(down=S), FUSED: curve()},
    "C11": {"attacked": curve(), SL: curve(up=EPS[:1]), M_PART: curve(down=EPS[:1])},
    "C12": {("spearman", "Filt(L_img)"): [0.9]},
    "C13": {("kernel_distance", SL): np.where(within([0.1]), 5.0, 1.0)},
    "C14": {"Adv": curve(), "Filt+Adv": np.where(within(STRONG_EPS), 0.501, 0.489)},
    "C15": {
        (OVER_STEPS, "Adv"): [0.5, 0.4, 0.3, 0.2, 0.1],
        (OVER_STEPS, "Filt+Adv"): [0.51, 0.41, 0.31, 0.21, 0.11],
    },
    "C16": {"FPD": curve()}
    | dict.fromkeys(("Add+FPD", "Filt+FPD"), curve(up=EPS[10:], down=EPS[:10])),
    "C17": {"FD": curve()}
    | dict.fromkeys(("Add+FD", "Filt+FD"), curve(up=EPS[11:], down=EPS[:11])),
    "C18": {"attacked": [0.9, 0.9, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0]},
}
# One curve, put in the place of the one above, with which the claim just fails.
FAILS = {
    "C1: seven columns for the image loss": ("Filt(L_img)", curve(up=EPS[:7])),
    "C1: seven columns for the semantic loss": ("Filt(L_sem)", curve(up=EPS[6:])),
    "C2: as good as before": ("Filt(L_img)", curve(up=EPS[1:])),
    "C3: equal on S": ("Filt(L_img)", curve(up=L, down=M)),
    "C4: equal in one column": (("ssim", "Filt(L_sem)"), curve(up=EPS[:-1])),
    "C5: another is as good in one": (("ssim", "Filt(L_sem)"), curve(up=EPS[:1])),
    "C6: equal in one middle column": ("Filt(L_img*)", curve(up=MIDDLE[1:], down=S)),
    "C6: equal in one column of S": ("Filt(L_img*)", curve(up=MIDDLE, down=S[1:])),
    "C6: one of the four is as good": ("Add(L_sem)", curve(up=MIDDLE[:1])),
    "C7: an early head is ahead in one column": ("head_2", curve(up=EPS[4:5])),
    "C8: too far below in one column": ("head_4", np.where(within([0.1]), 0.479, 0.5)),
    "C9: equal in one column of M": (FUSED, curve(up=M[:-1])),
    "C10: sl is ahead in one column": (SL, curve(up=EPS[2:3])),
    "C11: sl is no better": (SL, curve(up=EPS[1:])),
    "C12: too weak": (("spearman", "Filt(L_img)"), [0.899]),
    "C13: too near": (("kernel_distance", SL), np.where(within([0.1]), 4.99, 1.0)),
    "C14: equal at a strong ε": ("Filt+Adv", np.where(within(STRONG_EPS[1:]), 0.501, 0.5)),
    "C14: too much is lost": ("Filt+Adv", HOLDS["C14"]["Filt+Adv"] - 0.001 * within([0.003])),
    "C15: equal at one n": ((OVER_STEPS, "Filt+Adv"), [0.51, 0.41, 0.3, 0.21, 0.11]),
    "C16: equal at 0.5": ("Filt+FPD", curve(up=EPS[10:12])),
    "C17: equal at 0.5": ("Filt+FD", curve(up=EPS[11:12])),
    "C18: rises once": ("attacked", [*HOLDS["C18"]["attacked"][:9], 0.11, 0.1, 0.0, 0.0]),
    "C18: stays above 0": ("attacked", [*HOLDS["C18"]["attacked"][:11], 0.001, 0.001]),
}


def verdict(claim, given, regions=REGIONS):
    return check(claim, curves(given, regions))[0]


@pytest.mark.parametrize(("claim", "given"), HOLDS.items(), ids=HOLDS)
def test_a_claim_holds_where_it_just_does(claim, given):
    assert verdict(claim, given)


@pytest.mark.parametrize(("case", "change"), FAILS.items(), ids=FAILS)
def test_and_fails_where_it_just_does_not(case, change):
    claim, (which, values) = case.split(":")[0], change
    assert not verdict(claim, HOLDS[claim] | {which: values})


def test_equal_averages_in_another_order_are_equal():
    semantic, image = [0.7, 0.1, 0.3, *[0.5] * 10], [0.1, 0.3, 0.7, *[0.4] * 4, *[0.6] * 6]
    assert not verdict("C3", {"Filt(L_sem)": semantic, "Filt(L_img)": image})


def test_every_claim_has_both_cases():
    assert set(HOLDS) == {case.split(":")[0] for case in FAILS} == set(CLAIMS)


@pytest.mark.parametrize("claim", ["C3", "C6", "C9"])
def test_without_middle_strengths_a_claim_about_them_fails(claim):
    assert not verdict(claim, HOLDS[claim], REGIONS | {"M": within([]), "C6": within([])})


@pytest.mark.parametrize("claim", ["C14", "C16", "C17"])
def test_without_strong_attacks_a_claim_about_them_fails(claim):
    given = {method: values[:10] for method, values in HOLDS[claim].items()}
    assert not check(claim, curves(given, {}, EPS[:10]))[0]


@pytest.mark.parametrize(("of_500", "holds"), [(0, True), (10, True), (11, False)])
def test_c8_includes_two_hundredths(of_500, holds):
    # differences of such accuracies are seldom exact in floating point
    counts = np.arange(13, 500 - 11, 35)[:13]
    assert verdict("C8", {"Filt(L_img*)": counts / 500, "head_4": (counts + of_500) / 500}) == holds


@pytest.mark.parametrize(("lost", "holds"), [(11, True), (12, False)])
def test_c14_includes_11_thousandths(lost, holds):
    counts = np.arange(60, 580, 40)
    filtered = counts + np.where(within(STRONG_EPS), 1, -lost)
    assert verdict("C14", {"Adv": counts / 1000, "Filt+Adv": filtered / 1000}) == holds


# -- judged on images ----------------------------------------------------------------------------


@pytest.fixture
def craft(monkeypatch):
    """An experiment of given results: which images each method gets right, (strengths, images)."""

    def make(correct=None, *, failures=None, over_steps=None, seed=0, eps=EPS, **measured):
        given = {name: np.asarray(values, dtype=float) for name, values in measured.items()}
        number = np.shape([*(correct or {}).values(), *given.values()][0])[1]

        def measure(experiment, method):
            right = (correct or {}).get(method, np.ones((len(eps), number)))
            return {"accuracy": np.array(right, dtype=bool), **given}

        monkeypatch.setattr(claims, "measure", measure)
        monkeypatch.setattr(claims, "failure", lambda _, method: (failures or {}).get(method))
        monkeypatch.setattr(claims, "curve_over_steps", lambda _, method, eps: over_steps[method])
        experiment = object.__new__(Experiment)
        experiment.study = Study.named("digits", "smoke", test_images=number, seed=seed, eps=eps)
        return experiment

    return make


def right(number, of=40):
    """The first `number` images are right, at every strength."""
    return np.tile(np.arange(of) < number, (13, 1))


def judged(experiment, claim, **options):
    return judge(experiment, claim, **options).iloc[0]


@pytest.mark.parametrize(("after", "outcome"), [(40, "holds"), (20, "fails"), (21, "inconclusive")])
def test_outcomes(after, outcome, craft):
    row = judged(craft({"attacked": right(20), "Filt(L_img)": right(after)}), "C2")
    assert row["outcome"] == outcome
    assert row["measured"].startswith(f"gain: {after / 40 - 0.5:.3f}")


@pytest.mark.parametrize(
    ("times", "outcome"),
    [(195, "holds"), (194, "inconclusive"), (6, "inconclusive"), (5, "fails")],
)
def test_the_outcome_follows_from_the_share_of_resamples(times, outcome, craft, monkeypatch):
    met = np.arange(200)[None] < times
    crafted = iter([met[:, 0], met, ~met[:, 0]])  # all images, resamples, paper
    monkeypatch.setitem(CLAIMS, "C2", ("", lambda c: [Above("", next(crafted).astype(float))]))
    row = judged(craft({"attacked": right(20)}), "C2", resamples=200)
    assert (row["support"], row["outcome"], row["paper_outcome"]) == (times / 200, outcome, "fails")


def test_methods_are_compared_on_the_same_images(craft):
    # one image more is right: a resample without it shows no gain, one with it does
    row = judged(craft({"attacked": right(20), "Filt(L_img)": right(21)}), "C2", resamples=4000)
    assert row["support"] == pytest.approx(1 - (1 - 1 / 40) ** 40, abs=0.03)


def test_ties_are_ties_and_no_rounding_decides(craft):
    correct = np.zeros((13, 30), dtype=bool)
    correct[0], correct[1:7, :10], correct[7:12, 10:20] = True, True, True
    weights = np.random.default_rng(5).multinomial(30, [1 / 30] * 30, 2000)
    counts = weights @ correct.T  # whole numbers
    expected = ((np.diff(counts, axis=1) <= 0).all(axis=1) & (counts[:, -1] == 0)).mean()
    assert 0 < expected < 1
    assert judged(craft({"attacked": correct}, seed=5), "C18")["support"] == expected


def test_the_same_seed_judges_the_same(craft):
    correct = {"attacked": right(20), "Filt(L_img)": right(21)}
    first, again, other = (judge(craft(correct, seed=seed), "C2") for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert first["support"][0] != other["support"][0]


def test_a_failed_training_is_not_measured_and_says_why(craft):
    experiment = craft({"attacked": right(20)}, failures={FUSED: "its W is constant"})
    row = judged(experiment, "C10")
    assert (row["outcome"], row["measured"]) == ("not measured", "its W is constant")
    assert np.isnan(row["support"])
    assert row["paper_outcome"] == "fails"


def test_c15_is_judged_over_the_steps_of_the_study(craft):
    over_steps = {"Adv": right(20)[:2], "Filt+Adv": np.array([right(40)[0], right(21)[0]])}
    row = judged(craft({"attacked": right(20)}, over_steps=over_steps), "C15")
    assert (row["outcome"], row["measured"]) == ("inconclusive", "gain: 0.025 … 0.500")


def test_an_unknown_claim_is_refused(craft):
    with pytest.raises(KeyError, match="C19"):
        judge(craft({"attacked": right(20)}), "C19")


def test_all_claims_are_judged_where_none_is_named(experiment):
    rows = judge(experiment, resamples=20)
    assert set(rows["claim"]) == set(CLAIMS)
    assert set(rows["outcome"]) <= {"holds", "fails", "inconclusive", "not measured"}


def test_a_study_of_other_strengths_is_judged_at_its_own(craft):
    experiment = craft(kernel_distance=[[1.0] * 4, [1.0] * 4, [5.0] * 4], eps=(0.0, 1e-4, 0.1))
    assert judged(experiment, "C13")["outcome"] == "holds"


# -- regions -------------------------------------------------------------------------------------


@pytest.fixture
def find_regions(craft, monkeypatch):
    """S, M, L and C6 as a claim sees them when `counts` of `of` attacked images are right."""

    def find(counts, of):
        seen = []
        monkeypatch.setitem(CLAIMS, "C2", ("", lambda c: seen.append(c.regions) or []))
        judge(craft({"attacked": np.arange(of) < np.array(counts)[:, None]}), "C2", resamples=1)
        return {name: np.flatnonzero(mask).tolist() for name, mask in seen[0].items()}

    return find


def test_regions_follow_the_attacked_curve(find_regions):
    found = find_regions([90, 80, 73, 71, 50, 20, 10, 3, 2, 1, 0, 0, 0], 100)
    middle = [3, 4, 5, 6, 7]
    assert found == {"S": [0, 1, 2], "M": middle, "L": [8, 9, 10, 11, 12], "C6": middle}


@pytest.mark.parametrize(("clean", "of"), [(20, 24), (25, 500), (495, 500), (50, 500)])
def test_exactly_80_percent_of_clean_accuracy_is_small(clean, of, find_regions):
    kept = clean * 4 // 5
    assert find_regions([clean, kept, kept - 1, *[0] * 10], of)["S"] == [0, 1]


def test_the_papers_regions_are_those_of_its_text():
    np.testing.assert_equal(paper_curves().regions, REGIONS)


# -- per image -----------------------------------------------------------------------------------


def test_accuracy_is_1_or_0_per_image(craft):
    found = per_image(craft({"attacked": right(3, of=5)}), "accuracy", "attacked")
    assert found.tolist() == [[1, 1, 1, 0, 0]] * 13


def test_infinite_psnr_counts_as_200_db(craft):
    found = per_image(craft(psnr=[[np.inf, 30.0]] * 13), "psnr", "attacked")
    assert found.tolist() == [[200, 30]] * 13


def test_spearman_is_scipys_per_image(craft):
    uncertainty = np.random.default_rng(0).integers(0, 9, (13, 20)).astype(float)  # with ties
    uncertainty[:, :2] = np.array([EPS, EPS]).T * [1, -1]
    expected = [abs(spearmanr(EPS, image).statistic) for image in uncertainty.T]
    found = per_image(craft(uncertainty=uncertainty), "spearman", "Filt(L_img)")
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_a_constant_uncertainty_follows_nothing(craft):
    found = per_image(craft(uncertainty=np.ones((13, 2))), "spearman", "Filt(L_img)")
    assert found.tolist() == [[0, 0]]


def test_a_method_without_the_metric_is_a_key_error(craft):
    with pytest.raises(KeyError, match="kernel_distance"):
        per_image(craft(uncertainty=np.ones((13, 2))), "kernel_distance", "Add(L_img)")


# -- in the paper --------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim not in ("C12", "C13")])
def test_the_papers_outcomes(claim):
    met, _ = check(claim, paper_curves())
    assert met == (claim not in ("C4", "C5", "C10"))


def test_the_papers_numbers_stand_behind_them():
    assert check("C3", paper_curves())[1].split(", ")[2].endswith(" 0.058")  # of Table 1, over L
    assert check("C1", paper_curves())[1].endswith("0.000 … 0.160 (12 of 13)")
    assert check("C9", curves(HOLDS["C9"], REGIONS | {"M": within([])}))[1].endswith(
        "no such strengths"
    )


@pytest.mark.parametrize("claim", ["C12", "C13"])
def test_the_paper_has_no_numbers_of_its_figures(claim):
    with pytest.raises(KeyError):
        check(claim, paper_curves())
