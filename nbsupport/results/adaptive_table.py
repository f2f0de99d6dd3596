"""The table of the attacker who knows: one line per defence, with the verdict on its attack."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from ..attacks.adaptive import L2_RADII, RESTART_STEPS
from ..experiments.adaptive_evaluation import KNOWING, TRANSFERRED, UNSEEN, Outcome, Protocol
from ..experiments.evaluation import COLUMNS
from ..experiments.soundness import CHECKS, failed, verdicts
from ..study import Study
from .tables import escaped, grid, short, subject, without_marks

WORST = "worst"


def rows(protocol: Protocol, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tidy rows: accuracy per attack and ε, median L2 norms, and 1 or 0 per check of `nbsupport.experiments.soundness`.

    The columns are those of the other tables (`nbsupport.experiments.evaluation.COLUMNS`).
    """
    study, rows = protocol.study, []
    same = {
        "table": "adaptive",
        "study": study.name,
        "classifier": study.classifier_name,
        "steps": study.adaptive_steps,
    }
    same |= {"n": study.adaptive_images, "seed": study.seed}
    for outcome in outcomes:
        found: list[dict[str, object]] = []
        curves = {**outcome.robust, "envelope": outcome.envelope, WORST: outcome.worst()}
        for attack, curve in curves.items():
            for eps, robust in zip(outcome.eps, curve, strict=True):
                found.append(
                    {"attack": attack, "eps": eps, "metric": "accuracy", "value": robust.mean()}
                )
        for attack, norms in outcome.norms.items():
            found.append({"attack": attack, "metric": "median L2 norm", "value": np.median(norms)})
        for name, (passed, _) in verdicts(outcome).items():
            found.append({"attack": "all", "metric": f"check: {name}", "value": float(passed)})
        rows += [same | {"method": outcome.method} | row for row in found]
    return pd.DataFrame(rows, columns=COLUMNS)


def wide(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One line per defence: accuracy by attack at one middle ε, the worst over ε, L2 norms, and the verdict."""
    lines = {}
    for outcome in outcomes:
        middle = outcome.eps.index(outcome.trace_eps)
        curves = {"oblivious": outcome.robust["oblivious"], "envelope": outcome.envelope}
        curves |= {name: outcome.robust[name] for name in (*KNOWING, *TRANSFERRED[1:])} | {
            WORST: outcome.worst()
        }
        at_middle, over_eps = f"accuracy at ε = {short(outcome.trace_eps)}", "worst at ε ="
        line: dict[tuple[str, str], object] = {("", "clean"): outcome.robust["PGD"][0].mean()}
        line |= {(at_middle, name): curve[middle].mean() for name, curve in curves.items()}
        worst = outcome.worst().mean(axis=1)
        line |= {
            (over_eps, short(eps)): share
            for eps, share in zip(outcome.eps[1:], worst[1:], strict=True)
        }
        unseen = f"unseen, ε = {short(outcome.trace_eps)}"
        line |= {(unseen, name): outcome.robust[name][middle].mean() for name in UNSEEN}
        line |= {
            ("median L2 norm", name): np.median(norms) for name, norms in outcome.norms.items()
        }
        broken = failed(outcome)
        line["", "attack"] = "unreliable: " + ", ".join(broken) if broken else "sound"
        lines[outcome.method] = line
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.columns = pd.MultiIndex.from_tuples([*next(iter(lines.values()))])
    return table


def caption(study: Study) -> str:
    """What the table shows, with everything needed to read its numbers."""
    radii = ", ".join(f"{radius:g}" for radius in L2_RADII)
    return (
        f"The attacker who knows the denoiser: {subject(study)}, the first "
        f"{study.adaptive_images} test images (two standard errors of a share are up to "
        f"{1 / study.adaptive_images**0.5:.2f}), seed {study.seed}, scale {study.scale}. *Oblivious*: the paper's "
        f"attacker; *envelope*: the same in the worst of all smaller ε; *PGD*: through the whole defence, "
        f"with two losses, from {study.adaptive_restarts} starts with three sizes of step each and n = "
        f"{min(RESTART_STEPS, study.adaptive_steps)}, then once with n = {study.adaptive_steps}, for "
        f"PA-Filt also through each part; *AutoAttack*: APGD-CE, APGD-T and FAB-T of its standard version; *Square*: "
        f"its fourth, {study.adaptive_queries} queries; *transfer*: made on a second classifier; *worst*: per image "
        f"over all of these and all smaller ε; *L2-PGD*: the smallest of the radii {radii}. Defences without gradient "
        f"are attacked straight through (BPDA). A row whose attack fails a check is unreliable: its true accuracy may "
        f"be lower."
    )


def styled(outcomes: Sequence[Outcome], study: Study) -> Styler:
    """`wide` with its caption, for a notebook; unreliable rows in grey."""
    table = wide(outcomes)

    def look(line: pd.Series) -> list[str]:
        return ["" if line["", "attack"] == "sound" else "color: #777777"] * len(line)

    return (
        table.style.format(precision=2)
        .apply(look, axis=1)
        .set_caption(without_marks(caption(study)))
    )


def markdown(outcomes: Sequence[Outcome], study: Study) -> str:
    """The table for reading on the web, and what each check expects."""
    table = wide(outcomes)
    heads = [f"{column[1]} ({column[0]})" if column[0] else column[1] for column in table.columns]
    lines = []
    for name, values in zip(table.index, table.to_numpy(), strict=True):
        cells = [
            value if isinstance(value, str) else "none" if value == np.inf else f"{value:.2f}"
            for value in values
        ]
        lines.append([f"**{escaped(name)}**", *cells])
    checks = (
        "Checks: "
        + "; ".join(f"*{name}*: {expected}" for name, (expected, _) in CHECKS.items())
        + "."
    )
    return (
        "\n".join([f"**{caption(study)}**", "", *grid(["defence", *heads], lines), "", checks])
        + "\n"
    )
