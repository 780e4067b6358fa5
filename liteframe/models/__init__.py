"""The boxes of the method's figure: student, teacher, Video LLM. They know no trainer and no command line."""
