"""Frames in, windows out: the fold that makes a cluster's exact numbers.

Here belong deduplication, the state of open windows, the merge kernel, sealing, rollups, series caps and the ledger
that accounts for every frame.

Here does not belong how numbers are recorded (`emitter`), judged (`alerter`) or shown (`gateway`). Nothing here reads a
wall clock or a random number: two aggregators that read the same log publish the same bytes.
"""
