"""Models: the student, its teachers, and what carries weights from one to the other."""
