"""``report.html``: one file that shows what a run chose."""
