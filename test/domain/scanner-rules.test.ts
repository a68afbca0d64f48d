import { randomBytes } from 'node:crypto';
import { RE2JS } from 're2js';
import { parse as parseToml } from 'smol-toml';
import { describe, expect, test } from 'vitest';
import { parse as parseYaml } from 'yaml';
import { newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { scannerRules, type TokenForm } from '../../src/domain/scanner-rules.ts';
import { createTokenMint } from '../../src/domain/token.ts';

const FORM: TokenForm = { prefix: 'ck', environments: ['live', 'test'] };
const OWN_FORM: TokenForm = { prefix: 'acme1', environments: ['prod'] };
const mint = createTokenMint([keySecret('a-secret-of-the-scanner-rules-tests').derive('mint')], randomBytes);
const tokenOf = (environment: string, prefix = 'ck') =>
  mint.mint({ prefix, environment, id: newKeyId(Date.now()) });

// biome-ignore lint/suspicious/noExplicitAny: what a scanner reads is looked into, and held against what it takes
type Rules = any;
const gitleaks = (form: TokenForm): Rules => parseToml(scannerRules('gitleaks', form));
const trufflehog = (form: TokenForm): Rules => parseYaml(scannerRules('trufflehog', form));
const github = (form: TokenForm): Rules => JSON.parse(scannerRules('github', form));

/** What a scanner finds with an expression in RE2's syntax, as Go has it: each match's group of the secret. */
function findAll(regex: string, group: number, text: string): (string | null)[] {
  const matcher = RE2JS.compile(regex).matcher(text);
  const found: (string | null)[] = [];
  while (matcher.find()) found.push(matcher.group(group));
  return found;
}

/** A scanner looks for an expression only where the text holds one of the keywords. */
const ifKeyword = (keywords: readonly string[], text: string) =>
  keywords.some((keyword) => text.toLowerCase().includes(keyword.toLowerCase()));

const SCANNERS: Record<string, (form: TokenForm, text: string) => (string | null)[]> = {
  gitleaks(form, text) {
    const [rule] = gitleaks(form).rules;
    return ifKeyword(rule.keywords, text) ? findAll(rule.regex, rule.secretGroup, text) : [];
  },
  trufflehog(form, text) {
    const [detector] = trufflehog(form).detectors;
    return ifKeyword(detector.keywords, text) ? findAll(detector.regex.token, 1, text) : [];
  },
  // The secret between what is to stand before and behind it.
  github(form, text) {
    const { before_secret: before, secret_format: secret, after_secret: after } = github(form);
    return findAll(`(?:${before})(${secret})(?:${after})`, 1, text);
  },
};

describe.each(Object.entries(SCANNERS))('the rules for %s', (_, scan) => {
  test('find tokens of every environment, service keys too, wherever they stand', () => {
    for (const environment of ['live', 'test', 'svc']) {
      const token = tokenOf(environment);
      for (const text of [
        token,
        `${token}\n`,
        `KEY=${token}`,
        `"${token}"`,
        `'${token}';`,
        `Bearer ${token}, and more`,
        `https://example.com/?key=${token}&x=1`,
        `https://user:${token}@example.com`,
        `\n\t${token}\r\n`,
        `<b>${token}</b>`,
        `_${token}_`,
        `é${token}é`,
      ])
        expect(scan(FORM, text), text).toEqual([token]);
    }
  });

  test('find one beside the other', () => {
    const tokens = Array.from({ length: 4 }, () => tokenOf('live'));
    expect(scan(FORM, tokens.join(' , '))).toEqual(tokens);
  });

  test('pass over what is nearly one', () => {
    const token = tokenOf('live');
    for (const text of [
      token.slice(0, -1),
      `${token}x`,
      `${token}0`,
      `x${token}`,
      `0${token}`,
      token.slice(1),
      token.replace('ck_', 'CK_'),
      token.replace('_live_', '_prod_'),
      token.replace('_live_', '_liv_'),
      token.replace('_live_', '_live'),
      token.replace('ck_', 'pk_'),
      `${token.slice(0, 40)}-${token.slice(41)}`,
      `${token.slice(0, 40)}é${token.slice(41)}`,
      `${token.slice(0, 40)}\n${token.slice(40)}`,
      `${token.slice(0, 40)}_${token.slice(41)}`,
      'ck_live_',
      `ck_live_${'x'.repeat(200)}`,
      tokenOf('live', 'acme1'),
    ])
      expect(scan(FORM, text), text).toEqual([]);
  });

  test('are those of the configuration', () => {
    const token = tokenOf('prod', 'acme1');
    expect(scan(OWN_FORM, token)).toEqual([token]);
    expect(scan(OWN_FORM, tokenOf('svc', 'acme1'))).toHaveLength(1);
    expect(scan(OWN_FORM, tokenOf('live', 'acme1'))).toEqual([]);
    expect(scan(OWN_FORM, tokenOf('live'))).toEqual([]);
  });
});

describe('the form of the rules', () => {
  test('for gitleaks is a configuration that keeps its own rules', () => {
    expect(gitleaks(FORM)).toMatchObject({
      extend: { useDefault: true },
      rules: [
        {
          id: 'claviger-api-key',
          description: expect.any(String),
          secretGroup: 1,
          keywords: ['ck_live_', 'ck_test_', 'ck_svc_'],
        },
      ],
    });
  });

  test('for TruffleHog is a custom detector', () => {
    expect(trufflehog(FORM)).toEqual({
      detectors: [
        {
          name: 'claviger-api-key',
          keywords: ['ck_live_', 'ck_test_', 'ck_svc_'],
          regex: { token: expect.any(String) },
        },
      ],
    });
  });

  test('for GitHub has the fields of a custom pattern', () => {
    expect(Object.keys(github(FORM))).toEqual(['name', 'secret_format', 'before_secret', 'after_secret']);
  });

  test('holds no construct that RE2 or Hyperscan lacks', () => {
    const expressions = [
      gitleaks(FORM).rules[0].regex,
      trufflehog(FORM).detectors[0].regex.token,
      ...['secret_format', 'before_secret', 'after_secret'].map((field) => github(FORM)[field]),
    ];
    for (const expression of expressions) expect(expression).not.toMatch(/\(\?[^:]|\\[1-9Kk]|[*+?}]\+/);
  });
});
