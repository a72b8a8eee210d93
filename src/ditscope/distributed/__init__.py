"""Drawing with several processes: how they are started, what they say, and who draws what."""
