import { BODY_LENGTH } from './token.ts';
import { SERVICE_ENVIRONMENT } from './workspace.ts';

/*
 * Rules that make a scanner of secrets find this deployment's tokens, in the scanner's own form.
 *
 * The expressions keep to what RE2 (gitleaks, TruffleHog) and Hyperscan (GitHub) have in common: no lookaround, no
 * backreference. None of them can compute the checksum; docs/leaks.md says how whoever reads their findings does.
 */

export const RULE_FORMATS = ['gitleaks', 'trufflehog', 'github'] as const;
export type RuleFormat = (typeof RULE_FORMATS)[number];

/** How this deployment's tokens begin: `KEY_PREFIX` and `KEY_ENVIRONMENTS`. */
export interface TokenForm {
  readonly prefix: string;
  readonly environments: readonly string[];
}

const NAME = 'claviger-api-key';
/** A letter, a digit or the edge of the text ends a token's surroundings; `_`, which Markdown puts around text, does not. */
const EDGE = '(?:\\b|_)';

/** The text that `claviger scanner-rules` prints. */
export function scannerRules(format: RuleFormat, form: TokenForm): string {
  const prefixes = prefixesOf(form);
  const token = `(?:${prefixes.join('|')})[0-9A-Za-z]{${BODY_LENGTH}}`;
  switch (format) {
    case 'gitleaks':
      return gitleaksRules(prefixes, `${EDGE}(${token})${EDGE}`);
    case 'trufflehog':
      return trufflehogRules(prefixes, `${EDGE}(${token})${EDGE}`);
    case 'github':
      return githubPattern(token);
  }
}

/** Service keys too: theirs is the leak that hurts most. No prefix holds a character that means something in a rule. */
function prefixesOf({ prefix, environments }: TokenForm): string[] {
  return [...environments, SERVICE_ENVIRONMENT].map((environment) => `${prefix}_${environment}_`);
}

/** A configuration of gitleaks 8, beside its own rules. */
function gitleaksRules(keywords: readonly string[], regex: string): string {
  return `title = "Claviger"

[extend]
useDefault = true

[[rules]]
id = "${NAME}"
description = "An API key that Claviger issued"
regex = '''${regex}'''
secretGroup = 1
keywords = [${keywords.map((keyword) => `"${keyword}"`).join(', ')}]
`;
}

/** A configuration of TruffleHog 3 with one custom detector. */
function trufflehogRules(keywords: readonly string[], regex: string): string {
  return `detectors:
  - name: ${NAME}
    keywords:
${keywords.map((keyword) => `      - ${keyword}`).join('\n')}
    regex:
      token: '${regex}'
`;
}

/** The fields of GitHub's form for a custom pattern; of the partner program, `secret_format` is the expression. */
function githubPattern(token: string): string {
  const pattern = {
    name: NAME,
    secret_format: token,
    before_secret: '\\A|[^0-9A-Za-z]',
    after_secret: '\\z|[^0-9A-Za-z]',
  };
  return `${JSON.stringify(pattern, undefined, 2)}\n`;
}
