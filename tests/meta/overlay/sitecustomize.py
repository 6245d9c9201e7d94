"""Lets a copy of the package on PYTHONPATH win over the editable install.

The editable install's import hook stands before the path. This file lies beside such a copy
(builds with sanitizers,
mutated builds) and takes the hook away in every interpreter that is started with it, tests'
subprocesses included.
"""

import sys

sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
