"""Progress bars in a notebook: widgets where ipywidgets is installed, else plain text, which is no reason to warn.

tqdm decides which when `tqdm.auto` is first imported, and complains then about widgets that are missing. Whoever
imports it afterwards, the libraries below us included, gets what was decided here.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")
    import tqdm.auto  # noqa: F401
