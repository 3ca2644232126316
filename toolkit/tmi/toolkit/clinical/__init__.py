"""Clinical records: schema, units, validated reading, rendering as text, tokenizer.

The schema is a data file, so a cohort of another disease can supply its own.
"""
