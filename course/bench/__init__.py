"""The measurement pipeline: every measured number of the book comes out of here.

    python -m course.bench SUITE --system ID      measures the suite's cases that this interpreter can run

A suite is a list of cases; a case becomes one file, ``measurements/runs/<date>_<system>_<suite>.<case>.json``, in the form
of ``course/run_schema.json``: command, commit, configuration, raw samples, percentiles, clocks and power where the driver
tells them, and the accuracy of the very outputs whose speed was measured. ``core`` says when a run is INVALID.
"""
