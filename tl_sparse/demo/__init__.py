"""The demo: text -> two transformers -> the circuit of one task in each -> audits -> a page.

Every stage leaves its result in the folder, so that an interrupted run goes on where it stopped and
a second one is instant:

    demo/settings.json  the models that were asked for
    demo/corpus/        tokens of the mixture of real and generated Python
    demo/sparse/        log, checkpoint, circuit.json, audit.json of the sparse arm
    demo/dense/         the same for the dense model of equal width
    demo/width../       the same for narrower dense models, one of equal loss (with full=True)
    demo/summary.json   the table
    demo/circuit.html   the first two circuits in the viewer, to click through
    demo/index.html     the page
"""

from tl_sparse.demo.arms import ArmResult, ArmSpec, closing_lines, counted, table
from tl_sparse.demo.run import TASK, DemoSettings, arm_specs, dense_arm, run_demo, train_arm

__all__ = [
    "TASK",
    "ArmResult",
    "ArmSpec",
    "DemoSettings",
    "arm_specs",
    "closing_lines",
    "counted",
    "dense_arm",
    "run_demo",
    "table",
    "train_arm",
]
