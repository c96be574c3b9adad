import subprocess
import sys
from pathlib import Path


def test_mlflows_telemetry_is_off_before_deepspeed_imports_it():
    # MLflow sets its level at import: the level shows that it was imported in the environment that we made.
    script = Path(__file__).with_name("telemetry.py")
    said = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert said.stdout.splitlines()[-1] == "true True"
