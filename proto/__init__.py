"""What the parts share, and all that they know of one another.

Here belong wire messages, subjects, the metric catalogue, series keys, sketches, columns and their merge arithmetic,
the clock, errors, configuration loading, the bus and the runner of folds. The modules are pure, save for the bus, the
runner and what reads a file; only `bus` imports nats.

Here does not belong what one part alone needs, nor anything that imports a part.
"""
