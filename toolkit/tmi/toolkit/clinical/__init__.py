"""The clinical record: schema, units, validated reading, rendering as text, tokenizer.

The schema is data, so that a cohort of another disease brings its own.
"""
