import { defineConfig } from 'vitest/config';

/** `npm run test:browser`: the pages that people see, in a real Chromium (the one of CHROMIUM, or of PATH). */
export default defineConfig({
  test: {
    include: ['test/browser/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    testTimeout: 180_000,
    hookTimeout: 60_000,
  },
});
