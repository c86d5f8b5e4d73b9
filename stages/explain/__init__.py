"""STEP 2: one heat map per phrase."""
