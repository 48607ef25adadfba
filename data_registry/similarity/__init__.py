"""How like is the data of a task to what a model saw, and will that help?"""
