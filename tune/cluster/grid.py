"""A list of trials under Ray Tune, and what became of them."""

from ray import tune as ray_tune

from quarterhour.data.tokens import TokenData
from quarterhour.tune.cluster.fit import NoTrialStartsError, fit
from quarterhour.tune.cluster.trainable import end_as_failed, to_param_space
from quarterhour.tune.foreign import damage_told
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
    space = {"trial": ray_tune.grid_search([to_param_space(spec) for spec in todo])}
    try:
        fit(tokens, resources, progress, ray_tune.TuneConfig(reuse_actors=True), space)
    except NoTrialStartsError as error:
        for spec in todo:
            end_as_failed(spec, str(error))
    for spec in todo:
        with damage_told():
            if (result := spec.result()) and result.crashed:
                record_ending(spec.folder, Status.FAILED)
