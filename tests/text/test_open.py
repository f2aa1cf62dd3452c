import subprocess
import sys

import pytest

from sae_sweep.config import DatasetConfig, SaeSweepError
from sae_sweep.text import fingerprint, open_text


def test_an_unknown_kind_of_text_is_refused(tmp_path):
    for use in (open_text, fingerprint):
        with pytest.raises(SaeSweepError, match="dataset=owt: a DatasetConfig cannot be read as text"):
            use(DatasetConfig(), tmp_path)


def test_importing_text_loads_no_heavy_library():
    program = """
import sys
import sae_sweep.text

sys.exit(", ".join({"torch", "datasets", "huggingface_hub", "pyarrow"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
