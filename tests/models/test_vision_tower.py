"""What the vision tower does before and between its products: pixels become numbers, cells find their windows."""

import jax
import jax.numpy as jnp
import numpy as np

from mecap_jax.models.vision_tower import _rearranged, normalised

# Six cells, of which the last is none, in two windows of four places.
SLOTS = np.array([[[0, 1, 3, -1, 2, 4, -1, -1]]], np.int32)
SLOT_OF = np.array([[[0, 1, 4, 2, 5, -1]]], np.int32)


def test_pixels_are_normalised_channel_by_channel():
    """The numbers of the published `preprocessor_config.json` files."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = np.random.default_rng(0).integers(256, size=(5, 3, 8), dtype=np.uint8)
    expected = (pixels / 255 - mean[:, None]) / std[:, None]
    actual = jax.jit(normalised)(pixels.reshape(5, 24))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected.reshape(5, 24), atol=1e-6)


def test_cells_go_into_windows_and_back_and_so_do_gradients():
    """Without a scatter, whose gradient is added item by item."""
    cells = jax.random.normal(jax.random.key(0), (1, 1, 6, 2))
    weights = jax.random.normal(jax.random.key(1), (1, 1, 8, 2))
    slots, slot_of = jnp.asarray(SLOTS), jnp.asarray(SLOT_OF)
    in_windows = _rearranged(cells, slots, slot_of)
    np.testing.assert_array_equal(in_windows[0, 0, [0, 1, 4, 2, 5]], cells[0, 0, :5])
    assert not np.asarray(in_windows)[SLOTS < 0].any()
    back = np.asarray(_rearranged(in_windows, slot_of, slots))
    np.testing.assert_array_equal(back[0, 0, :5], cells[0, 0, :5])
    assert not back[0, 0, 5].any()

    def plain(x):
        return jnp.where(SLOTS[..., None] >= 0, x[:, :, jnp.maximum(SLOTS[0, 0], 0)], 0)

    gradient = jax.jit(jax.grad(lambda x: (_rearranged(x, slots, slot_of) * weights).sum()))
    np.testing.assert_allclose(gradient(cells), jax.grad(lambda x: (plain(x) * weights).sum())(cells), atol=1e-6)
    assert "scatter" not in gradient.lower(cells).as_text()
