"""Windows in, HTTP out: everything that people and other systems read.

Here belong the views of health, metrics and debugging, exposition to Prometheus and OpenMetrics, federation, `forward`
with one file for each target, and the page.

Here does not belong any number of its own making: what is served was in a window, or in the gateway's own state.
"""
