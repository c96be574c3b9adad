from tests.trainer.conftest import Ranks


def test_mlflows_telemetry_is_off_before_deepspeed_imports_it(run_ranks: Ranks):
    # MLflow sets its level at import: the level shows that it was imported in the environment that we made.
    assert run_ranks("telemetry.py")[0].splitlines()[-1] == "true True"
