"""Where published place indexes lie: folders on this machine, or an engine that spans several."""
