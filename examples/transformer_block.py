"""A Transformer with DropPath, TokenDropout and dropout of the attention.

python examples/transformer_block.py
"""

import keras
import numpy as np

import kdrop

keras.utils.set_random_seed(0)
# Which of two words is more frequent in a sequence? (Words 0 and 1 of 20.)
TOKENS, FEATURES, DEPTH = 32, 32, 2
words = np.random.default_rng(0).integers(20, size=(3000, TOKENS))
targets = ((words == 0).sum(axis=1) > (words == 1).sum(axis=1)).astype("int32")


def block(x, rate):
    """A pre-norm block: each residual branch ends in DropPath."""
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.MultiHeadAttention(4, 8, dropout=0.1)(y, y)
    x = x + kdrop.DropPath(rate)(y)
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(2 * FEATURES, activation="gelu")(y)
    y = keras.layers.Dense(FEATURES)(kdrop.InvertedDropout(0.1)(y))
    return x + kdrop.DropPath(rate)(y)


inputs = keras.Input((TOKENS,), dtype="int32")
x = keras.layers.Embedding(20, FEATURES)(inputs)
x = kdrop.TokenDropout(0.5, name="drop_tokens")(x)  # after the positions, if there are
for rate in kdrop.schedules.over_depth(0.2, DEPTH):
    x = block(x, rate)
outputs = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
outputs = keras.layers.Dense(2, activation="softmax")(outputs)
model = keras.Model(inputs, outputs)

# MultiHeadAttention makes a Dropout of Keras: replace it in the model itself.
kdrop.replace(model, in_place=True)
for layer in kdrop.drop_layers(model):
    print(f"{type(layer).__name__:16} rate {layer.rate:.2f}")

tokens = keras.Model(inputs, model.get_layer("drop_tokens").output)
for training in True, False:
    print(
        f"tokens, training={training}:", tokens(words[:1], training=training).shape[1]
    )

model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(words[:2000], targets[:2000], batch_size=64, epochs=8, verbose=0)
accuracy = model.evaluate(words[2000:], targets[2000:], verbose=0)[1]
print(f"test accuracy: {accuracy:.3f}")
