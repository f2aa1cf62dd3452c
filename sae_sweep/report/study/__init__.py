"""The study's tables as files, figures and text."""

from sae_sweep.report.study.files import StudyFiles, write_answers, write_study_tables
from sae_sweep.report.study.markdown import answers_markdown, table1_markdown, table2_markdown
from sae_sweep.report.study.records import cell_record
from sae_sweep.report.study.words import StudySetup

__all__ = [
    "StudyFiles",
    "StudySetup",
    "answers_markdown",
    "cell_record",
    "table1_markdown",
    "table2_markdown",
    "write_answers",
    "write_study_tables",
]
