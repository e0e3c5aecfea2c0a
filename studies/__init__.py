"""What dropout does, shown on real data: `python -m studies NAME`.

regularisers  MNIST with and without dropout, beside L1, L2 and max-norm
rate          the error against the rate, at a fixed width and at a fixed keep * width
votes         the error against the number of sub-networks that vote
family        every layer for images, at its own best rate, on CIFAR-10
spiral        every layer of units against the best possible classifier
alexnet       dropout nowhere, in the classifier, and everywhere, on CIFAR-10

A study prints its table, and leaves NAME.csv and NAME.png in a folder of its name below
--output. Killed, it goes on with the same command. Hyperparameters are chosen on
validation data alone.
"""
