"""AutoAttack and its parts: exact projections, linear networks with known answers, edge cases, recorded runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import lagrangian_jax as lj
from lagrangian_jax.attacks import apgd, autoattack, fab, square
from lagrangian_jax.attacks.arrays import example_keys
from lagrangian_jax.attacks.attack import execute
from lagrangian_jax.losses import cross_entropy, dlr, margin, targeted_dlr

SHAPE = (6, 6, 3)


def grey_images(count, shape=SHAPE, seed=0):
    """Images far enough from black and white for the box not to matter."""
    return np.random.default_rng(seed).uniform(0.35, 0.65, (count, *shape)).astype(np.float32)


def size(perturbation, norm):
    flat = np.asarray(perturbation, np.float64).reshape(len(perturbation), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))


@pytest.fixture(scope="module")
def near_linear():
    """``near_linear(classes, norm)``: a linear network, images, labels, and the exact distance to the next class.

    The bias is small, so that the boundaries pass near the grey images.
    """

    def build(classes, norm, count=6):
        rng = np.random.default_rng(classes)
        images = grey_images(count)
        weights = rng.normal(size=(images[0].size, classes)).astype(np.float32)
        biases = (-0.5 * weights.sum(0)).astype(np.float32)

        def logits_fn(x):
            return x.reshape(x.shape[0], -1) @ weights + biases[None]

        logits = np.asarray(logits_fn(images), np.float64)
        labels = logits.argmax(1).astype(np.int32)
        distances = np.full((count, classes), np.inf)
        for row, label in enumerate(labels):
            for other in set(range(classes)) - {label}:
                normal = weights[:, label].astype(np.float64) - weights[:, other]
                dual = np.abs(normal).sum() if norm == "linf" else np.sqrt((normal**2).sum())
                distances[row, other] = (logits[row, label] - logits[row, other]) / dual
        return logits_fn, images, labels, distances.min(1)

    return build


class TestProjection:
    """`hyperplane_step` against solvers in float64."""

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("gap", [0.3, -0.3, 1.5, 0.0])
    def test_against_scipy(self, norm, gap):
        rng = np.random.default_rng(1)
        points, weights = rng.uniform(size=(4, 12)), rng.normal(size=(4, 12))
        weights[:, 3] = 0
        points[1, :4], points[2, :4] = 0, 1
        got = fab.hyperplane_step(*(jnp.asarray(v, jnp.float32) for v in (points, weights, np.full(4, gap))), norm)
        for x, w, t in zip(points, weights, np.asarray(got), strict=True):
            assert np.dot(w, t) == pytest.approx(-gap, abs=1e-5)
            assert (x + t).min() >= -1e-6
            assert (x + t).max() <= 1 + 1e-6
            best = _shortest_linf(x, w, gap) if norm == "linf" else _shortest_l2(x, w, gap)
            assert size(t[None], norm)[0] == pytest.approx(best, abs=1e-5)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_large_images(self, norm):
        """150,528 numbers, many at the box: the equation holds, and the step has the form of the optimum."""
        rng = np.random.default_rng(2)
        points = rng.uniform(size=(2, 150528)).round(1).astype(np.float32)
        weights = (rng.normal(size=points.shape) ** 3).astype(np.float32)
        gap = np.array([20000.0, -50000.0], np.float32)
        step = np.asarray(fab.hyperplane_step(points, weights, gap, norm), np.float64)
        np.testing.assert_allclose((weights * step).sum(1), -gap, rtol=1e-4)
        inside = (points + step > 1e-6) & (points + step < 1 - 1e-6)
        for t, w, free in zip(step, weights, inside, strict=True):
            ratio = np.abs(t[free]) / (1.0 if norm == "linf" else np.abs(w[free]))
            assert ratio.max() - ratio.min() < 1e-4 * ratio.max()
            scale = ratio.max() * (1.0 if norm == "linf" else np.abs(w))
            assert np.all(np.abs(t) <= scale * (1 + 1e-4))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_out_of_reach_goes_to_the_faces(self, norm):
        points = jnp.array([[0.2, 0.7, 0.4]])
        weights = jnp.array([[1.0, -2.0, 0.0]])
        step = fab.hyperplane_step(points, weights, jnp.array([100.0]), norm)
        np.testing.assert_allclose(step, [[-0.2, 0.3, 0.0]], atol=1e-6)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_zero_weights_stay(self, norm):
        step = fab.hyperplane_step(jnp.full((2, 5), 0.5), jnp.zeros((2, 5)), jnp.array([1.0, 0.0]), norm)
        np.testing.assert_array_equal(step, 0)


def _shortest_linf(x, w, gap):
    count = len(x)
    cost = np.r_[np.zeros(count), 1.0]
    within = np.block([[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]])
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    found = optimize.linprog(cost, within, np.zeros(2 * count), [[*w, 0.0]], [-gap], bounds)
    assert found.success
    return found.fun


def _shortest_l2(x, w, gap):
    def step(multiplier):
        return np.clip(-multiplier * w, -x, 1 - x)

    multiplier = optimize.brentq(lambda m: w @ step(m) + gap, -1e3, 1e3, xtol=1e-14)
    return np.sqrt((step(multiplier) ** 2).sum())


class TestApgd:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize(("name", "classes"), [("apgd_ce", 2), ("apgd_dlr", 3), ("apgd_t", 5)])
    def test_breaks_where_the_bound_reaches_the_boundary(self, near_linear, key, norm, name, classes):
        logits_fn, images, labels, distances = near_linear(classes, norm)
        bound = float(np.sort(distances)[2:4].mean())
        adversarial = lj.attacks.create(name, norm=norm, bound=bound, steps=40)(key, logits_fn, images, labels)
        np.testing.assert_array_equal(np.argmax(logits_fn(adversarial), -1) != labels, distances < bound)
        assert np.all(size(adversarial - images, norm) <= bound * (1 + 1e-5))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_start_lies_on_the_sphere(self, key, norm):
        images = grey_images(3)
        start = apgd.random_in_ball(example_keys(key, 3), images, norm, 0.1)
        np.testing.assert_allclose(size(start - images, norm), 0.1, rtol=1e-4)

    def test_best_is_the_largest_loss(self, near_linear, key):
        logits_fn, images, labels, _ = near_linear(4, "linf")
        common = dict(norm="linf", bound=0.01, steps=20)
        best = lj.attacks.create("apgd_ce", keep="best", **common)(key, logits_fn, images, labels)
        last = lj.attacks.create("apgd_ce", **common)(key, logits_fn, images, labels)
        losses = [np.asarray(cross_entropy(logits_fn(x), labels)) for x in (best, last)]
        assert np.all(losses[0] >= losses[1] - 1e-6)

    def test_step_size_halves_where_the_loss_oscillates(self):
        """A narrow peak: the first steps, twice the bound, jump over it, and only halved steps come near."""
        peak = np.full((1, 2, 2, 1), 0.513, np.float32)
        images = np.full((1, 2, 2, 1), 0.5, np.float32)

        def logits_fn(x):
            height = -100 * jnp.sum(jnp.abs(x - peak), (1, 2, 3))
            return jnp.stack([jnp.zeros_like(height), height - 1], -1)

        options = dict(norm="linf", bound=0.1, steps=100)
        end = apgd.apgd(
            logits_fn, lambda z: cross_entropy(z, jnp.array([0])), images, images, jnp.array([0]), **options
        )
        assert end.step_size[0] <= 0.2 / 2**5
        np.testing.assert_allclose(end.best, peak, atol=0.2 / 2**4)
        assert not end.fooled[0]

    def test_two_classes_have_no_ratio(self, near_linear, key):
        logits_fn, images, labels, _ = near_linear(2, "linf")
        with pytest.raises(ValueError, match="at least 3 classes, got 2"):
            lj.attacks.create("apgd_dlr")(key, logits_fn, images, labels)

    @pytest.mark.parametrize(("classes", "expected"), [(3, False), (4, True)])
    def test_the_targeted_ratio_needs_four_classes(self, near_linear, key, monkeypatch, classes, expected):
        """With fewer, APGD-T takes the cross-entropy of the target."""
        taken = []
        monkeypatch.setattr(apgd, "targeted_dlr", lambda *given: taken.append(given) or targeted_dlr(*given))
        logits_fn, images, labels, _ = near_linear(classes, "linf")
        attack = lj.attacks.create("apgd_t", targets=1, steps=2)
        jax.eval_shape(lambda images: attack(key, logits_fn, images, labels), images)
        assert bool(taken) == expected

    def test_more_targets_than_classes(self, near_linear, key):
        """The default of 9 targets on 2 classes: the stages beyond the last class do nothing."""
        logits_fn, images, labels, distances = near_linear(2, "l2")
        for name in ("apgd_t", "fab_t"):
            attack = lj.attacks.create(name, norm="l2", bound=float(1.1 * distances.max()), steps=20)
            assert len(attack.stages) == 9
            adversarial = attack(key, logits_fn, images, labels)
            assert np.all(np.argmax(logits_fn(adversarial), -1) != labels)
            beyond = attack.stages[-1]
            untouched = beyond.function(example_keys(key, 6), logits_fn, images, labels, *beyond.arguments)
            np.testing.assert_array_equal(untouched, images)


class TestFab:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_finds_the_nearest_boundary(self, near_linear, key, norm):
        logits_fn, images, labels, distances = near_linear(4, norm)
        nearest = np.full(len(images), np.inf)
        for target in range(4):
            _, reached = fab.fab(logits_fn, images, labels, jnp.full(6, target), norm=norm, steps=40)
            nearest = np.minimum(nearest, np.where(labels == target, np.inf, reached))
        np.testing.assert_allclose(nearest, distances, atol=1e-3, rtol=0.02)
        assert np.all(nearest >= distances * (1 - 1e-4))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_counts_only_within_the_bound(self, near_linear, key, norm):
        logits_fn, images, labels, distances = near_linear(4, norm)
        bound = float(np.median(distances))
        adversarial = lj.attacks.create("fab_t", norm=norm, bound=bound, steps=40)(key, logits_fn, images, labels)
        fooled = np.argmax(logits_fn(adversarial), -1) != labels
        np.testing.assert_array_equal(fooled, distances * 1.02 < bound)
        assert np.all(size(adversarial - images, norm) <= bound)
        np.testing.assert_array_equal(adversarial[~fooled], images[~fooled])

    def test_box_in_the_way(self, key):
        """At a black image half of the coordinates cannot move: the others have to go twice as far."""
        weights = np.tile([1.0, -1.0], 8).astype(np.float32)

        def logits_fn(x):
            value = x.reshape(-1, 16) @ weights
            return jnp.stack([jnp.full_like(value, 0.0), value - 0.8], -1)

        images = jnp.zeros((1, 4, 4, 1))
        _, distance = fab.fab(logits_fn, images, jnp.array([0]), jnp.array([1]), norm="linf", steps=30)
        np.testing.assert_allclose(distance, 0.1, atol=1e-3)


class TestSquare:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_margin_falls_within_the_bound(self, near_linear, key, norm):
        logits_fn, images, labels, _ = near_linear(4, norm)
        bound = 0.01 if norm == "linf" else 0.05
        clean = -np.asarray(margin(logits_fn(images), labels))

        @jax.jit
        def search(queries):
            return square.search(key, logits_fn, images, labels, norm=norm, bound=bound, queries=queries)

        few, some, many = (search(queries) for queries in (1, 20, 300))
        assert np.all(some[1] <= few[1])
        assert np.all(many[1] <= some[1])
        assert np.mean(many[1]) < np.mean(clean) - 0.1 * np.abs(np.mean(clean))
        for best, margins, _ in (few, some, many):
            assert np.all(size(best - images, norm) <= bound * (1 + 1e-5))
            np.testing.assert_allclose(-margin(logits_fn(best), labels), margins, atol=1e-4)

    def test_the_stripes_that_it_starts_from_are_tried_first(self, key):
        """They fool this network, which holds against any other proposal: one query is enough."""
        images, labels, seen = np.full((1, 8, 8, 3), 0.5, np.float32), np.array([0]), []

        def logits_fn(x):
            jax.debug.callback(seen.append, x)
            moved = jnp.abs(x - 0.5)
            striped = jnp.all((moved > 0.09) & (x == x[:, :1]), axis=(1, 2, 3))
            return jnp.stack([1.0 - 2.0 * striped, jnp.zeros(len(x))], axis=-1)

        _, margins, fooled = square.search(key, logits_fn, images, labels, norm="linf", bound=0.1, queries=1)
        jax.effects_barrier()
        assert fooled.all()
        assert margins == -1.0
        assert len(seen) == 1

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_fools_in_a_wide_ball(self, near_linear, key, norm):
        logits_fn, images, labels, distances = near_linear(3, norm)
        bound = float((4 if norm == "linf" else 6) * distances.max())
        adversarial = lj.attacks.create("square", norm=norm, bound=bound, queries=500)(key, logits_fn, images, labels)
        assert np.all(np.argmax(logits_fn(adversarial), -1) != labels)

    def test_schedule(self):
        queries = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999, 6001, 8001]
        expected = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9]
        assert [int(square.halvings(q)) for q in queries] == expected

    def test_queries_are_counted_from_zero_after_the_start(self, key, monkeypatch):
        """Proposals that tell their query, each better than the one before."""

        def tell(keys, images, bound, share):
            return jnp.zeros_like(images), lambda keys, query, best: jnp.full_like(images, (query + 1) / 100)

        monkeypatch.setattr(square, "_linf", tell)
        images, labels = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2, int)

        def logits_fn(images):
            return jnp.stack([1 - images.mean((1, 2, 3)), jnp.zeros(2)], axis=-1)

        best, margins, _ = square.search(key, logits_fn, images, labels, norm="linf", bound=0.1, queries=7)
        np.testing.assert_allclose(best, 0.07, rtol=1e-6)  # the last query is number 6
        np.testing.assert_allclose(margins, 0.93, rtol=1e-6)

    def test_bumps_are_sums_of_squares_around_the_centre(self):
        expected = np.zeros((3, 6))
        for ring in range(4):
            rows, columns = (slice(max(c - ring, 0), c + ring + 1) for c in (1, 3))
            expected[rows, columns] += 1 / (ring + 1) ** 2
        np.testing.assert_allclose(square.bumps(3, 6), expected / np.linalg.norm(expected), rtol=1e-12)

    @pytest.mark.parametrize("side", [1, 2, 3, 6, 7])
    def test_tile_has_unit_norm_and_two_signs(self, side):
        tile = square.tile(side)
        assert np.sqrt((tile.astype(np.float64) ** 2).sum()) == pytest.approx(1, abs=1e-6)
        assert np.all(tile[: side // 2] > 0)
        assert np.all(tile[side // 2 :] < 0)

    def test_starts(self, key):
        images = jnp.full((3, 32, 32, 3), 0.5)
        keys = example_keys(key, 3)
        stripes = jax.jit(lambda keys: square._linf(keys, images, 0.1, 0.8)[0])(keys) - images
        np.testing.assert_allclose(np.abs(stripes), 0.1, atol=1e-6)
        np.testing.assert_array_equal(stripes, jnp.broadcast_to(stripes[:, :1], stripes.shape))
        tiles = np.asarray(jax.jit(lambda keys: square._l2(keys, images, 1.0, 0.8)[0])(keys) - images)
        np.testing.assert_allclose(size(tiles, "l2"), 1, rtol=1e-5)
        covered = np.zeros((32, 32), bool)
        covered[1:31, 1:31] = True
        np.testing.assert_array_equal((tiles != 0).all((0, 3)), covered)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_a_query_changes_windows_alone(self, key, norm):
        images = jnp.full((64, 16, 16, 3), 0.5)
        side = square.sides(16, 16, 0.8, norm)[4]

        @jax.jit
        def start_and_candidate(keys):
            start, propose = (square._linf if norm == "linf" else square._l2)(keys, images, 0.1, 0.8)
            return start - images, propose(keys, 501, start) - images

        start, candidate = (np.asarray(d) for d in start_and_candidate(example_keys(key, 64)))
        np.testing.assert_allclose(size(candidate, norm), 0.1, rtol=1e-4)
        if norm == "l2":  # outside of the two windows the perturbation is scaled, so that its norm stays the bound
            ratios = np.where(start == 0, 0, candidate / np.where(start == 0, 1, start))
            start = start * np.array([np.median(r[r != 0]) for r in ratios]).reshape(-1, 1, 1, 1)
        changed = np.abs(candidate - start) > 1e-4
        assert changed.any()
        if norm == "linf":
            assert max(changed.any((2, 3)).sum(1).max(), changed.any((1, 3)).sum(1).max()) <= side
        else:
            assert changed.any(3).sum((1, 2)).max() <= 2 * side**2


class TestStages:
    def test_order_and_survivors(self, near_linear, key):
        logits_fn, images, labels, distances = near_linear(5, "linf")
        attack = lj.attacks.create("autoattack", bound=float(np.median(distances)), steps=20, targets=3, queries=20)
        order = [getattr(stage.function, "func", stage.function).__name__ for stage in attack.stages]
        assert order == ["apgd_ce", *["_apgd_rank"] * 3, *["_fab_rank"] * 3, "square"]
        assert [int(stage.arguments[0]) for stage in attack.stages if stage.arguments] == [1, 2, 3, 1, 2, 3]

        @functools.partial(jax.jit, static_argnums=0)
        def run(function, keys, x, y, *arguments):
            adversarial = function(keys, logits_fn, x, y, *arguments)
            return adversarial, jnp.argmax(logits_fn(adversarial), -1)

        @jax.jit
        def predict(x):
            return jnp.argmax(logits_fn(x), -1)

        labels = labels.copy()
        labels[0] = (labels[0] + 1) % 5  # misclassified from the start
        done = execute(attack, run, predict, example_keys(key, 6), images, labels)
        assert done.attacked[0] == 5
        assert all(a >= b for a, b in zip(done.attacked, done.attacked[1:], strict=False))
        np.testing.assert_array_equal(done.adversarial[0], images[0])
        fooled = done.predictions != labels
        np.testing.assert_array_equal(fooled[1:], distances[1:] < float(np.median(distances)))

    def test_targets_share_a_program(self, near_linear, key):
        logits_fn, images, labels, _ = near_linear(8, "l2")
        traces = []

        def counted(x):
            traces.append(x.shape)
            return logits_fn(x)

        counts = []
        for targets in (1, 6):
            traces.clear()
            attack = lj.attacks.create("autoattack", norm="l2", bound=1e-3, steps=3, targets=targets, queries=3)
            attack(key, counted, images, labels)
            counts.append(len(traces))
        assert counts[1] <= counts[0]  # the first run also traces the checks of the input

    def test_targets_by_rank(self):
        logits = jnp.array([[0.1, 3.0, 2.0, 1.0], [4.0, 1.0, 2.0, 3.0]])
        assert [apgd.ranked_class(logits, jnp.int32(rank)).tolist() for rank in (0, 1, 3)] == [[1, 0], [2, 3], [0, 1]]

    @pytest.mark.parametrize(
        ("name", "parameters", "message"),
        [
            ("autoattack", dict(norm="l1"), "norm must be 'linf' or 'l2'"),
            ("autoattack", dict(targets=0), "targets must be an integer, 1 or larger"),
            ("apgd_ce", dict(rho=1.5), "rho must be"),
            ("square", dict(queries=0), "queries must be"),
            ("fab_t", dict(bound=-1), "bound must be"),
        ],
    )
    def test_bad_parameters(self, name, parameters, message):
        with pytest.raises(ValueError, match=message):
            lj.attacks.create(name, **parameters)


class TestChecks:
    images, labels = grey_images(4), np.array([0, 1, 2, 3], np.int32)
    weights = np.random.default_rng(3).normal(size=(int(np.prod(SHAPE)), 4)).astype(np.float32)

    def linear(self, x):
        return (x - 0.5).reshape(x.shape[0], -1) @ self.weights

    def found(self, logits_fn, labels=labels):
        return autoattack.checks(jax.random.key(0), logits_fn, self.images, labels)

    def test_nothing_wrong(self):
        assert self.found(self.linear) == []

    def test_probabilities(self):
        assert "probabilities" in self.found(lambda x: jax.nn.softmax(self.linear(x)))[0]

    def test_random_network(self):
        rng = np.random.default_rng(0)
        (warning,) = self.found(lambda x: self.linear(x) + rng.normal(size=(1, 4)))[:1]
        assert "the network is random" in warning

    def test_batch_mates(self):
        def train_mode(x):
            logits = self.linear(x)
            return logits - logits.mean(0, keepdims=True)

        (warning,) = self.found(train_mode)
        assert "other images of its batch" in warning

    def test_zero_gradients(self):
        (warning,) = self.found(lambda x: self.linear(jnp.round(8 * x) / 8))
        assert "gradient of the logits is zero or not a number at 4 of 4" in warning
        labels = np.asarray(self.linear(self.images).argmax(-1))
        (warning,) = self.found(lambda x: 1e4 * self.linear(x), labels)
        assert "gradient of the cross-entropy is zero" in warning

    def test_a_label_that_comes_third_is_no_zero_gradient(self):
        """There the difference-of-logits ratio is 1 whatever the image, but the network is not flat."""
        third = np.asarray(jnp.argsort(self.linear(self.images), axis=-1)[:, -3], np.int32)
        assert self.found(self.linear, third) == []

    def test_few_classes(self):
        (warning,) = autoattack.checks(
            jax.random.key(0), lambda x: self.linear(x)[:, :3], self.images, np.minimum(self.labels, 2)
        )
        assert "with 3 classes" in warning

    def test_square_after_gradients(self):
        predictions = np.array([1, 1, 1, 0])
        execution = lj.attacks.Execution(np.zeros((4, 1, 1, 1)), predictions, (4, 3, 3))
        assert "fooled 2 of the 3" in autoattack.square_check(execution, np.zeros(4, int))[0]
        assert autoattack.square_check(execution._replace(attacked=(4, 1, 1)), np.zeros(4, int)) == []


@pytest.fixture(scope="module")
def recorded(original):
    return np.load(original / "components" / "apgd.npz")


class TestRecorded:
    def test_checkpoints(self, recorded):
        for steps in (50, 100):
            expected = recorded[f"checkpoints_after_iteration_n{steps}"]
            np.testing.assert_array_equal(np.flatnonzero(apgd.checkpoints(steps)), expected)

    def test_ratios(self, recorded):
        labels, targets = recorded["labels"], recorded["targets"]
        losses = {"dlr": lambda z: dlr(z, labels), "targeted_dlr": lambda z: targeted_dlr(z, labels, targets)}
        for name, loss in losses.items():
            values, vjp = jax.vjp(loss, recorded["logits"])
            (gradient,) = vjp(jnp.ones_like(values))
            np.testing.assert_allclose(values, recorded[name], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(gradient, recorded[f"{name}_grad"], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(
        ("norm", "loss", "tolerance"),
        [
            ("linf", "dlr", 1e-4),
            pytest.param("l2", "dlr", 1e-2, marks=pytest.mark.slow),
            pytest.param("linf", "ce", 1e-2, marks=pytest.mark.slow),
            pytest.param("l2", "ce", 1e-2, marks=pytest.mark.slow),
        ],
    )
    def test_fifty_steps_from_a_given_start(self, recorded, original, norm, loss, tolerance):
        """The recorded runs had the network in train mode: the statistics of the batch couple the four examples."""
        network = lj.models.create("resnet18", num_classes=10, width=16)
        variables = lj.interop.load(original / "model_a.safetensors", network)
        images, labels = recorded["images"], recorded["images_labels"]

        def logits_fn(x):
            return network.apply(variables, x, train=True, mutable=["batch_stats"])[0]

        def objective(logits):
            return (dlr if loss == "dlr" else cross_entropy)(logits, labels)

        name = {"linf": "Linf", "l2": "L2"}[norm]
        options = dict(norm=norm, bound=float(recorded[f"{name}_eps"]), steps=50)
        run = jax.jit(lambda start: apgd.apgd(logits_fn, objective, start, images, labels, **options))
        end = run(recorded[f"{name}_x_init"])
        prefix = f"{name}_{loss}_50its_"
        np.testing.assert_array_equal(~np.asarray(end.fooled), recorded[prefix + "acc"])
        values = recorded[prefix + "loss_best"]
        bounded = values < 100  # the ratio of nearly equal logits amplifies the last bits
        np.testing.assert_allclose(end.best_loss[bounded], values[bounded], rtol=tolerance)
        if (norm, loss) == (
            "linf",
            "dlr",
        ):  # the others leave the recorded path when the sign of a tiny gradient differs
            np.testing.assert_allclose(end.best, recorded[prefix + "x_best"], atol=1e-4)
            np.testing.assert_allclose(end.adversarial, recorded[prefix + "x_best_adv"], atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize(("norm", "bound"), [("linf", 8 / 255), ("l2", 1.0)])
    def test_robust_accuracy(self, golden, network_a, cifar10_test, key, norm, bound):
        """The first 32 images, with fewer Square queries: as robust as recorded, to one image."""
        images, labels = cifar10_test(32)
        recorded = np.load(golden / "model_a_test0-127" / f"aa_{norm}.npz")
        attack = lj.attacks.create("autoattack", norm=norm, bound=bound, queries=200)
        adversarial = np.asarray(attack(key, network_a, images, labels))
        robust = np.asarray(network_a(adversarial)).argmax(-1) == labels
        assert abs(int(robust.sum()) - int((~recorded["success"][:32]).sum())) <= 1
        assert np.all(size(adversarial - images, norm) <= bound * (1 + 1e-5))
