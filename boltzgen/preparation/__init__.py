"""From a structure file to an audited System: reading, protonation, caps, types, the count of terms, the report."""
