"""What is suggested instead of a name that does not exist."""

import pytest

from lagrangian_jax import attacks, evaluation
from lagrangian_jax.names import unknown


@pytest.mark.parametrize(
    ("given", "valid", "hint"),
    [
        ("PGD_L2", ["fgsm", "pgd_l2", "pgd_linf"], "; did you mean 'pgd_l2'?"),
        ("wong2020fast", ["Wong2020Fast"], "; did you mean 'Wong2020Fast'?"),
        ("pgd", ["pgd_l2", "pgd_linf", "ppgd"], "; did you mean 'pgd_l2' or 'pgd_linf'?"),
        ("Auto", ["apgd_t", "autoattack"], "; did you mean 'autoattack'?"),
        ("pgd_l22", ["pgd_l2", "pgd_linf"], "; did you mean 'pgd_l2'?"),
        ("directory", ["dir", "name"], "."),
        ("", ["pgd_l2", "pgd_linf"], "."),
        ("eps", ["bound", "steps"], "; did you mean 'bound'?"),
        ("epsilon", ["bound", "steps"], "; did you mean 'bound'?"),
        ("alpha", ["bound", "step_size"], "; did you mean 'step_size'?"),
        ("num_steps", ["steps", "step_size"], "; did you mean 'steps'?"),
        ("iterations", ["steps", "step_size"], "; did you mean 'steps'?"),
        ("nb_iter", ["steps", "step_size"], "; did you mean 'steps'?"),
        ("eps", ["steps"], "."),  # one without a bound
        ("eps", ["bound_linf", "bound_l2", "steps"], "; did you mean 'bound_linf' or 'bound_l2'?"),
        ("alpha", ["alpha_max", "beta"], "; did you mean 'alpha_max'?"),
        ("xyz", ["steps"], "."),
    ],
)
def test_the_nearest_name(given, valid, hint):
    assert str(unknown("name", given, valid)) == f"unknown name {given!r}{hint} Valid: {', '.join(valid)}"


def test_names_of_attacks_from_elsewhere():
    with pytest.raises(ValueError, match=r"'eps'; did you mean 'bound'\?"):
        attacks.create("pgd_l2", eps=1.0)
    with pytest.raises(ValueError, match=r"'pgd'; did you mean 'pgd_l0' or 'pgd_l2' or 'pgd_linf'\?"):
        attacks.create("pgd")


def test_the_attack_of_a_row():
    row = evaluation.Row("x", "pgd_l22")
    with pytest.raises(ValueError, match=r"^unknown attack of row 'x' in .*: 'pgd_l22'; did you mean 'pgd_l2'\?"):
        evaluation.ready([row], {}, (8, 8, 3), 2)
