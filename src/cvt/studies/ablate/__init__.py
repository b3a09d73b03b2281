"""The paper's claims as studies that anyone can run: configurations, seeds, intervals, verdicts."""
