"""What is trained on: curriculum, pass rates, questions and supervised examples."""
