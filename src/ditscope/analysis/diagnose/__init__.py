"""What is wrong with a run, where, how sure that is, and what to try: one file per rule."""
