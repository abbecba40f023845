-- First the tasks with the largest inputs, as far as these are known; equal ones in order.
local order = {}
for i = 1, #candidates do order[i] = i end
table.sort(order, function(a, b)
  local one, other = candidates[a].bytes, candidates[b].bytes
  return one > other or one == other and a < b
end)
return order
