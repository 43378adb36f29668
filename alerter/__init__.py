"""Windows in, notices out: the fold that decides what people must hear of, and the pipeline that tells them once.

Here belong conditions, the states of rules, inhibition, silences, grouping, and `notify` with one file for each
receiver.

Here does not belong merging, which is done when a window arrives, nor the serving of alerts over HTTP (`gateway`).
"""
