"""How a person or a scheduler starts the work: the command `sonotrain`, and jobs of many processes."""
