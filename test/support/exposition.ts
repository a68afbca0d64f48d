/** One metric of a scrape. */
export interface Family {
  readonly type: string;
  readonly help: string;
  /** The labels of its samples, and their values; `le` is left out. */
  readonly labels: ReadonlyMap<string, ReadonlySet<string>>;
}

/** Prometheus' text format, by the name of the metric. Samples that belong to no metric fail. */
export function parseExposition(text: string): Map<string, Family> {
  const families = new Map<string, { type: string; help: string; labels: Map<string, Set<string>> }>();
  for (const line of text.split('\n')) {
    const [, kind, name = '', rest = ''] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (kind !== undefined) {
      const family = families.get(name) ?? { type: '', help: '', labels: new Map() };
      families.set(name, family);
      if (kind === 'HELP') family.help = rest;
      else family.type = rest;
      continue;
    }
    if (line === '') continue;
    const [, sample = '', labels = ''] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? [];
    const family = families.get(sample) ?? families.get(sample.replace(/_(bucket|sum|count)$/, ''));
    if (family === undefined) throw new Error(`a sample of no metric: ${line}`);
    for (const [, label = '', value = ''] of labels.matchAll(/(\w+)="([^"]*)"/g)) {
      if (label === 'le') continue;
      const values = family.labels.get(label) ?? new Set();
      family.labels.set(label, values.add(value));
    }
  }
  return families;
}
