"""Commands on a bundle: predict, explain, report, verify, inspect, bench, sign.

They parse options, call the other sub-packages of the runtime, and print tables.
"""
