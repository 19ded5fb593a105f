"""The audit: try to prove a circuit wrong, and say how it went.

`audit` makes an `AuditReport` of `Finding`s, each of one claim, each with its threshold and, where
there is one, its control. The measurements stand in a module each: `sufficiency`, `necessity`,
`surroundings`, `mechanism`, `generality`, `minimality`, `controls`; `mib` has the two numbers of
the MIB benchmark.
"""

from tl_sparse.auditing.findings import CLAIMS, AuditReport, Claim, Effect, Finding
from tl_sparse.auditing.mib import MIB_SHARES, cmd, cpr, faithfulness
from tl_sparse.auditing.overlap import Overlap, overlap
from tl_sparse.auditing.run import audit

__all__ = [
    "CLAIMS", "MIB_SHARES", "AuditReport", "Claim", "Effect", "Finding", "Overlap", "audit", "cmd",
    "cpr", "faithfulness", "overlap",
]  # fmt: skip
