"""Likelihoods: the terms of the variational bound, the bound of images, exact values by the ODE.

terms.py       L_T, L_{t-1} and L_0 of one step (Ho et al. 2020, eq. 5)
bound.py       the whole bound of images, in bits/dim
ode.py         the exact likelihood by the probability-flow ODE (Song et al. 2021)
continuous.py  the bound in continuous time, with a learned schedule (Kingma et al. 2021)
"""
