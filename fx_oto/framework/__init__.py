"""The framework of passes: what a pass is, pipelines, what is known of a graph, what was done to it."""
