"""What is wrong with the text of rows, found before training, and the repairs that are safe to make.

`inspect`, `statistics` and `survey` stream over rows once; `fix` and `show` are pure functions of one row.
"""

from tunesmith.data.quality.detectors import Survey, inspect, show, statistics, survey
from tunesmith.data.quality.repair import fix
from tunesmith.data.quality.size import size_advice

__all__ = ["Survey", "fix", "inspect", "show", "size_advice", "statistics", "survey"]
