"""The commands on a bundle: predict, explain, report, verify, inspect, bench, sign.

They parse options, call the rooms below, and print tables.
"""
