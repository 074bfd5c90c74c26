.PHONY: help check format test quick wheels mutations oracle clean

help: ## Say what the verbs do.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

check: ## Lint, check the format and the types.
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

format: ## Format, and fix what can be fixed.
	uv run ruff format .
	uv run ruff check --fix .

test: ## All tests, with branch coverage.
	uv run pytest --cov --cov-report=term:skip-covered

quick: ## Unit tests alone.
	uv run pytest -x -q --ignore=tests/e2e

wheels: ## Build the wheels of all members and test them installed alone.
	uv run python benchmarks/wheels.py

mutations: ## Apply every committed fault and see it caught.
	uv run python benchmarks/mutations.py

oracle: ## Build mmdet3d's environment in .oracle/, and compare with mmdet3d.
	bash tests/oracle/environment.sh

clean: ## Remove what can be made again; runs/ stays.
	rm -rf dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
