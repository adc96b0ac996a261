"""Ray: starting or joining it, its machines, trials and searches under Ray Tune.

Nothing outside this room imports Ray. What to train next and what a trial does is not decided here.
"""

import os

# Before Ray is imported, since it reads these then: no statistics, no log files of its own beside
# ours, no change of the working directory, and no state of Tune's own, which is written for every
# trial again and again and never read here.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Rows without an evaluation lack the objective.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
