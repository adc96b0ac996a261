"""A list of trials under Ray Tune, and what became of them."""

from ray import tune as ray_tune

from quarterhour.data.tokens import TokenData
from quarterhour.tune.cluster.fit import fit
from quarterhour.tune.cluster.trainable import from_param_space, to_param_space
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import TrialsProgress
from quarterhour.tune.run_folder import Status
from quarterhour.tune.training.events import record_ending


def run_trials(
    todo: list[TrialSpec], tokens: TokenData, resources: Resources, progress: TrialsProgress
) -> None:
    """Run trials to their results. Those that Ctrl-C or SIGTERM stops have none, and can go on.

    A trial that raises or whose process dies is tried again from its checkpoint a few times. Then
    its result is FAILED, with the reason. One that cannot fit in memory is not run: INFEASIBLE.
    """
    for spec in todo:
        if reason := resources.why_too_large(spec.config):
            spec.write_config()
            spec.write_result(Status.INFEASIBLE, {}, reason=reason)
    todo = [spec for spec in todo if not spec.result()]
    if not todo:
        return
    results = fit(
        tokens,
        resources,
        progress,
        ray_tune.TuneConfig(reuse_actors=True),
        param_space={"trial": ray_tune.grid_search([to_param_space(spec) for spec in todo])},
    )
    for result in results:
        if result.error and result.config:
            spec = from_param_space(result.config["trial"])
            if not spec.result():
                spec.write_failure()
                record_ending(spec.folder, Status.FAILED)
