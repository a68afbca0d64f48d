import { hasParameters, type RoutePattern, type RouteRule } from './route-pattern.ts';

/**
 * Many rules, each with what it stands for, to be asked for all that match one request. A tree of segments: a lookup
 * visits a node at most once, so that its cost is bounded by the length of the path and the rules on its way.
 *
 * A router finds the one best route of a path; here every rule that matches counts (docs/scopes.md).
 */
export interface RouteIndex<T> {
  /**
   * What the matching rules stand for, in no order; as `matchesRule` decides, for every rule at once.
   * @param normalPath what `normalizeRequestPath` gave.
   */
  find(method: string, normalPath: string): ReadonlySet<T>;
}

interface Leaf<T> {
  readonly methods: ReadonlySet<string> | undefined;
  readonly value: T;
}

interface Node<T> {
  readonly literals: Map<string, Node<T>>;
  parameter: Node<T> | undefined;
  /** Rules that end here. */
  readonly exact: Leaf<T>[];
  /** Rules that take any rest from here, also none. */
  readonly rest: Leaf<T>[];
}

export function createRouteIndex<T>(
  rules: Iterable<{ readonly rule: RouteRule; readonly value: T }>,
): RouteIndex<T> {
  const root = createNode<T>();
  for (const { rule, value } of rules) {
    const node = nodeOf(root, rule.pattern);
    const leaf = { methods: rule.methods, value };
    if (rule.pattern.takesRest) node.rest.push(leaf);
    else node.exact.push(leaf);
  }
  return {
    find(method, normalPath) {
      const found = new Set<T>();
      // The root has no segments.
      const end = normalPath.length === 1 ? 0 : normalPath.length;
      collect(root, { method, normalPath, end, found }, 0);
      return found;
    },
  };
}

function createNode<T>(): Node<T> {
  return { literals: new Map(), parameter: undefined, exact: [], rest: [] };
}

function nodeOf<T>(root: Node<T>, pattern: RoutePattern): Node<T> {
  let node = root;
  for (const part of pattern.parts) {
    if (part === null) {
      node.parameter ??= createNode();
      node = node.parameter;
      continue;
    }
    for (const segment of part.slice(1).split('/')) {
      let next = node.literals.get(segment);
      if (next === undefined) {
        next = createNode();
        node.literals.set(segment, next);
      }
      node = next;
    }
  }
  return node;
}

interface Lookup<T> {
  readonly method: string;
  readonly normalPath: string;
  readonly end: number;
  readonly found: Set<T>;
}

/** Takes what matches from `node` on, of which the path up to `at` is the route. */
function collect<T>(node: Node<T>, lookup: Lookup<T>, at: number): void {
  const { normalPath, end } = lookup;
  takeAt(node, lookup, at);
  if (at >= end) return;
  const start = at + 1;
  const slash = normalPath.indexOf('/', start);
  const next = slash < 0 ? end : slash;
  const literal = node.literals.get(normalPath.slice(start, next));
  if (literal !== undefined) collect(literal, lookup, next);
  if (node.parameter === undefined) return;
  // As in matchesRoute: with path parameters in it, a `:name` is the end of its pattern or is none.
  if (hasParameters(normalPath, start, next)) takeAt(node.parameter, lookup, next);
  else collect(node.parameter, lookup, next);
}

function takeAt<T>(node: Node<T>, lookup: Lookup<T>, at: number): void {
  take(node.rest, lookup);
  if (at >= lookup.end) take(node.exact, lookup);
}

function take<T>(leaves: readonly Leaf<T>[], { method, found }: Lookup<T>): void {
  for (const { methods, value } of leaves) {
    if (methods === undefined || methods.has(method)) found.add(value);
  }
}
