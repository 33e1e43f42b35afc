"""The command line: reads recipes, checks them against the schema, plans, and starts the workers."""
