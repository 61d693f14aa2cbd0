"""What was published of these methods, as hypotheses about the rows of the study."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from results.parts import TITLES
from sop.results.statistics import Estimate, difference

# A gain that would matter here: one point of top-1.
MARGIN = 0.01


class Claim(NamedTuple):
    """'`better` is better than `worse`', or at least as good.

    Attributes:
      text: the claim.
      kind: of the part that can tell.
      better, worse: methods.
      as_good: whether it says no more than that the first is not worse by `MARGIN`.
    """

    text: str
    kind: str
    better: str
    worse: str
    as_good: bool = False


_MEAN, _BCNN = "representation=gavp", "representation=bcnn"
_HIDDEN = "representation=gavp,hidden="  # its width depends on the number of classes
_COMPACT = "representation=compact_bilinear,projected_dim=2048"
_PLAIN = "representation=mpncov,reduction=0,dropout=0.0,normalization=none"
_EXACT = "representation=mpncov,reduction=0,dropout=0.0,normalization=eigh"
_ISQRT1, _ISQRT3, _ISQRT5 = (
    f"representation=mpncov,reduction=0,dropout=0.0,num_iters={number}" for number in (1, 3, 5)
)
_GSOP, _FUSION = (f"attention=gsop,dim=32,manner={each}" for each in ("channel", "fusion_avg"))
_LATE = f"{_GSOP},blocks=0_0_1"
_FINE_TUNING = {title: method for method, title in TITLES.items()}
_TWO_STAGES = _FINE_TUNING["fine-tuned, two stages"]

CLAIMS = (
    Claim("covariance beats average pooling", "heads", _ISQRT5, _MEAN),
    Claim("… also one with as many parameters", "heads", _ISQRT5, _HIDDEN),
    Claim("its square root beats the covariance itself", "heads", _ISQRT5, _PLAIN),
    Claim("five iterations are as good as the exact root", "heads", _ISQRT5, _EXACT, as_good=True),
    Claim("three are as good as five", "heads", _ISQRT3, _ISQRT5, as_good=True),
    Claim("one is as good as five", "heads", _ISQRT1, _ISQRT5, as_good=True),
    Claim("iSQRT-COV beats B-CNN", "heads", _ISQRT5, _BCNN),
    Claim("compact bilinear pooling is as good as B-CNN", "heads", _COMPACT, _BCNN, as_good=True),
    Claim("GSoP of channels beats no attention", "attention", _GSOP, "attention=none"),
    Claim("GSoP from the first stage on beats that in the last alone", "attention", _GSOP, _LATE),
    Claim("GSoP's fusion beats channels alone", "attention", _FUSION, _GSOP),
    Claim("GSoP of channels beats SE", "attention", _GSOP, "attention=se"),
    Claim("CGD beats no attention", "attention", "attention=cgd", "attention=none"),
    Claim("CGD's cascade beats its toy form", "attention", "attention=cgd", "attention=cgd_toy"),
    Claim("GFGP beats max pooling", "pooling", "pool=gfgp", "pool=max"),
    Claim("GFGP beats average pooling", "pooling", "pool=gfgp", "pool=average"),
    Claim("GFGP beats strided convolutions", "pooling", "pool=gfgp", "pool=None"),
    Claim(
        "fine-tuning B-CNN in two stages beats one",
        "finetuning",
        _TWO_STAGES,
        _FINE_TUNING["fine-tuned, one stage"],
    ),
    Claim(
        "fine-tuned so, it beats the same from scratch",
        "finetuning",
        _TWO_STAGES,
        _FINE_TUNING["from scratch, two stages"],
    ),
)


def find(name: str, methods: Iterable[str]) -> str | None:
    """The method of this name, or that begins with it where it ends in '='."""
    begins = name.endswith("=")
    return next((m for m in methods if m == name or (begins and m.startswith(name))), None)


def verdict(
    claim: Claim, accuracy: Mapping[str, Mapping[int, float]], at_an_end: frozenset[str]
) -> tuple[str, Estimate | None]:
    """'seen', 'not seen' or 'not decidable here', and the difference `better` − `worse`.

    With the 95 % interval of the difference paired by seed, 'seen' means that it lies above 0 (as
    good: above −`MARGIN`), 'not seen' that it lies below `MARGIN` (as good: below −`MARGIN`). What
    could do better with a learning rate beyond those tried decides nothing against itself.

    Args:
      accuracy: method → seed → top-1 in [0, 1].
      at_an_end: methods whose learning rate is the least or the largest of those tried.
    """
    better, worse = find(claim.better, accuracy), find(claim.worse, accuracy)
    found = difference(accuracy[better], accuracy[worse]) if better and worse else None
    if found is None or found.half is None:
        return "not decidable here", found
    low, high = found.mean - found.half, found.mean + found.half
    least, most = (-MARGIN, -MARGIN) if claim.as_good else (0.0, MARGIN)
    if low > least and worse not in at_an_end:
        return "seen", found
    if high < most and low <= least and better not in at_an_end:
        return "not seen", found
    return "not decidable here", found
